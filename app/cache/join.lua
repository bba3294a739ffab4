-- Lead a flight, or follow the one under way. Led anew is a flight that was given up, whose leader died before dispatch, that is
-- older than any leader's deadline, whose picture was only for those aboard, or that the asking process leads without knowing it (the reply to its join was lost).
--
-- KEYS[1] flight (hash: leader, fence, state: lead | sent | open | done | failed, started, note; expires after ARGV[2])
-- ARGV[1] who wants to lead (incarnation)  ARGV[2] time to live in ms
-- ARGV[3] leader known to be dead, or ""   ARGV[4] 1: a landed flight does not count, a new picture is wanted
-- ARGV[5] deadline of any leader in ms     ARGV[6] where a picture that may be reused is stored
-- Returns {"lead", fence} or {"follow", state, leader, note, age_ms}
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local flight = redis.call('HMGET', KEYS[1], 'state', 'leader', 'fence', 'note', 'started')
local state = flight[1]
local landed = state == 'done' or state == 'failed'
local age = now_ms - tonumber(flight[5] or '0')
local abandoned = (state == 'lead' and flight[2] == ARGV[3]) or ((state == 'lead' or state == 'sent') and flight[2] == ARGV[1])
local overdue = (state == 'lead' or state == 'sent') and age > tonumber(ARGV[5])
if not state or state == 'open' or abandoned or overdue or (landed and (ARGV[4] == '1' or state == 'failed' or flight[4] ~= ARGV[6])) then
  local fence = string.format('%.0f', tonumber(flight[3] or '0') + 1)
  redis.call('HSET', KEYS[1], 'state', 'lead', 'leader', ARGV[1], 'fence', fence, 'note', '', 'started',
    string.format('%.0f', now_ms))
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {'lead', fence}
end
return {'follow', state, flight[2], flight[4] or '', string.format('%.0f', age)}
