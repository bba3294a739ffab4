#!lua flags=allow-oom
-- The end of a reservation: SETTLED at a price, REFUNDED, or AMBIGUOUS (charged until reconciled). Moves the counters of the
-- windows it was reserved in and the roll-up of its day, frees its places, and appends the ledger row, in one step. Idempotent by id.
-- A named call's answer goes with it; a job that came to nothing, without an answer to keep, leaves the name free.
--
-- An image counts once it was dispatched, whatever became of it; the dollars count when settled or ambiguous.
-- A recorded price settles an AMBIGUOUS entry once; reconciliation may also refund it.
--
-- KEYS[1] ledger(tenant)  KEYS[2] reservation  KEYS[3] outstanding  KEYS[4] ambiguous  KEYS[5] rows
-- KEYS[6] usage(tenant, day it was reserved in)
-- KEYS[7 .. 6+C] the concurrency sets, then the W window hashes, in the order of the reservation,
-- then the call's name, if the reservation has one
-- ARGV[1] id  ARGV[2] SETTLED | REFUNDED | AMBIGUOUS  ARGV[3] paid (micro-dollars; for SETTLED)
-- ARGV[4] fence to match, or "" for any  ARGV[5] states it may come from, comma-separated
-- ARGV[6] who: owner | reaper | reconcile   ARGV[7] JSON of further row fields
-- ARGV[8] tombstone in ms   ARGV[9] 1: certainly not sent, though DISPATCHING was acknowledged; no image counts
-- ARGV[10] process that asks (optional)  ARGV[11] answer to keep under the name, or ""  ARGV[12] how long, in ms
-- Returns {"done", seq, delta, state it came from}   this call made the transition; delta = change of the spent dollars
--      or {"already", seq, state, process, delta, state it came from}   an earlier call of that process made it
--      or {"state", state or ""}                     not allowed from this state; nothing was changed
local int = function(number) return string.format('%.0f', number) end
local held = redis.call('HMGET', KEYS[2], 'state', 'fence', 'amount', 'windows', 'places', 'usage', 'group', 'name', 'claim',
  'dispatched')
local state, target = held[1], ARGV[2]
if not state and ARGV[9] == '1' then
  -- Refunded before it was reserved: the reservation may still be on its way, and must find that it is over.
  redis.call('HSET', KEYS[2], 'state', 'VOID')
  redis.call('PEXPIRE', KEYS[2], ARGV[8])
end
if not state or state == 'VOID' then return {'state', ''} end
if state == target then
  local by = redis.call('HMGET', KEYS[2], 'ender', 'moved', 'came_from')
  return {'already', redis.call('HGET', KEYS[1], 'seq') or '0', state, by[1] or '', by[2] or '0', by[3] or ''}
end
if state == 'SETTLED' or state == 'REFUNDED' then return {'state', state} end -- final, whatever the caller believes
if (ARGV[4] ~= '' and held[2] ~= ARGV[4]) or not string.find(',' .. ARGV[5] .. ',', ',' .. state .. ',', 1, true) then
  return {'state', state}
end
local amount, paid = tonumber(held[3]), tonumber(ARGV[3])
if target == 'SETTLED' and (paid < 0 or paid > amount) then return redis.error_reply('ERR paid is outside 0..amount') end
local windows, taken = cjson.decode(held[4]), cjson.decode(held[5])
local places = #taken
local at = held[8]
local matches = #KEYS == 6 + places + #windows + (at and 1 or 0) and KEYS[6] == held[6] and (not at or KEYS[#KEYS] == at)
for i, place in ipairs(taken) do matches = matches and KEYS[6 + i] == place end
for i, window in ipairs(windows) do matches = matches and KEYS[6 + places + i] == window[1] end
if not matches then return redis.error_reply('ERR the keys are not those of the reservation') end

local was = state == 'AMBIGUOUS' and amount or 0
local charge = target == 'SETTLED' and paid or (target == 'AMBIGUOUS' and amount or 0)
local outstanding = state == 'RESERVED' or state == 'DISPATCHING'
local more = cjson.decode(ARGV[7])
local sent = state == 'DISPATCHING' and ARGV[9] ~= '1'
local images = sent and 1 or (state == 'AMBIGUOUS' and ARGV[9] == '1' and -1 or 0)
-- Every key is read before any is written: one of a wrong type must fail while the books are still whole.
redis.call('HLEN', KEYS[1])
redis.call('ZCARD', KEYS[3])
redis.call('ZCARD', KEYS[4])
redis.call('XLEN', KEYS[5])
redis.call('HLEN', KEYS[6])
for i = 1, places do redis.call('SCARD', KEYS[6 + i]) end
for i = 1, #windows do redis.call('HLEN', KEYS[6 + places + i]) end
local named = at and redis.call('HGET', at, 'claim') == held[9]
for i, window in ipairs(windows) do
  local name, add = KEYS[6 + places + i], window[2]
  if redis.call('EXISTS', name) == 1 then
    local spent = charge - was
    if window[3] == 'img' then spent = images * add end
    if outstanding then redis.call('HINCRBY', name, 'reserved', int(-add)) end
    if spent ~= 0 then redis.call('HINCRBY', name, 'spent', int(spent)) end
  end
end
if redis.call('EXISTS', KEYS[6]) == 1 then
  local function count(measure, by)
    if by ~= 0 then redis.call('HINCRBY', KEYS[6], measure .. '\31' .. held[7], int(by)) end
  end
  count('images', images)
  count('made', target == 'SETTLED' and more.image and 1 or 0)
  count('spent', charge - was)
  count('ambiguous', (target == 'AMBIGUOUS' and amount or 0) - was)
  count('refunded', target == 'REFUNDED' and amount or 0)
end
for i = 1, places do redis.call('SREM', KEYS[6 + i], ARGV[1]) end
redis.call('ZREM', KEYS[3], ARGV[1])
local time = redis.call('TIME')
local now_ms = int(tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
redis.call('HSET', KEYS[2], 'state', target, 'paid', int(charge), 'ended', now_ms, 'image', more.image or '',
  'reason', more.reason or '', 'upstream_id', more.upstream_id or '', 'ender', ARGV[10] or '', 'moved', int(charge - was), 'came_from', state)
if target == 'AMBIGUOUS' then
  redis.call('ZADD', KEYS[4], now_ms, ARGV[1])
else
  redis.call('ZREM', KEYS[4], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[8])
end
if named and outstanding and target == 'REFUNDED' and ARGV[11] == '' then
  redis.call('DEL', at)
elseif named then
  redis.call('HSET', at, 'state', 'ended', 'end', target)
  if ARGV[11] ~= '' then redis.call('HSET', at, 'reply', ARGV[11]) end
  redis.call('PEXPIRE', at, ARGV[12])
end
local row = {'id', ARGV[1], 'at', now_ms, 'state', target, 'from', state, 'by', ARGV[6], 'reserved', int(amount),
  'delta', int(charge - was)}
if ARGV[9] == '1' and state ~= 'RESERVED' then
  row[#row + 1] = 'unsent'
  row[#row + 1] = '1'
end
-- Without the upstream's id, when it was sent is what a bill can be held against.
if held[10] and (more.upstream_id or '') == '' then
  row[#row + 1] = 'dispatched'
  row[#row + 1] = held[10]
end
for name, value in pairs(more) do
  row[#row + 1] = name
  row[#row + 1] = value
end
redis.call('XADD', KEYS[5], '*', unpack(row))
local seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
return {'done', int(seq), int(charge - was), state}
