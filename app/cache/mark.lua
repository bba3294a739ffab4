#!lua flags=allow-oom
-- The leader moves its flight on: sent (about to be dispatched), lead (proven unsent again), open (given up), done or failed (landed).
--
-- KEYS[1] flight  ARGV[1] leader  ARGV[2] fence, or "" for any of this leader's  ARGV[3] new state  ARGV[4] note (done: where the result is stored; failed: JSON)  ARGV[5] time to live in ms
-- Returns 1, or 0 when the flight has another leader by now: nothing was changed
local flight = redis.call('HMGET', KEYS[1], 'leader', 'fence')
if flight[1] ~= ARGV[1] or (ARGV[2] ~= '' and flight[2] ~= ARGV[2]) then return 0 end
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'note', ARGV[4], 'started', string.format('%.0f', now_ms))
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
