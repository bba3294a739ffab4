#!lua flags=allow-oom
-- DISPATCHING -> RESERVED with fence + 1, after an answer that proves that nothing was billed: the money stays held for
-- the next try. Repeating it is answered alike.
--
-- KEYS[1] ledger(tenant)  KEYS[2] reservation  KEYS[3] name, if the call has one: it can be taken over again
-- ARGV[1] owner  ARGV[2] fence it was dispatched with  ARGV[3] claim, with KEYS[3]
-- Returns {"ok", seq} or {"state", state or ""}
local held = redis.call('HMGET', KEYS[2], 'state', 'owner', 'fence')
local next_fence = string.format('%.0f', tonumber(ARGV[2]) + 1)
local seq = redis.call('HGET', KEYS[1], 'seq') or '0'
if held[1] == 'RESERVED' and held[2] == ARGV[1] and held[3] == next_fence then return {'ok', seq} end
if held[1] ~= 'DISPATCHING' or held[2] ~= ARGV[1] or held[3] ~= ARGV[2] then return {'state', held[1] or ''} end
if KEYS[3] and redis.call('HGET', KEYS[3], 'claim') == ARGV[3] then redis.call('HSET', KEYS[3], 'state', 'claimed') end
redis.call('HSET', KEYS[2], 'state', 'RESERVED', 'fence', next_fence)
seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
return {'ok', string.format('%.0f', seq)}
