-- RESERVED -> DISPATCHING: from the reply on, an unknown outcome counts as charged. Acknowledged before the first byte
-- goes upstream. Repeating it with the same fence by the same owner is answered alike. A named call's name is taken for good in the same
-- step.
--
-- KEYS[1] ledger(tenant)  KEYS[2] reservation  KEYS[3] key(tenant, key id)  KEYS[4] name, if the call has one
-- ARGV[1] epoch  ARGV[2] sequence mark  ARGV[3] owner  ARGV[4] fence  ARGV[5] token digest  ARGV[6] claim, with KEYS[4]
-- Returns {"ok", seq} or {"key", reason} or {"epoch", epoch, seq} or {"state", state or ""}
--      or {"taken"}    another call has the name by now
local found = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
local seq = tonumber(found[2] or '0')
if found[1] ~= ARGV[1] or seq < tonumber(ARGV[2]) then return {'epoch', found[1] or '', string.format('%.0f', seq)} end

local held = redis.call('HMGET', KEYS[2], 'state', 'owner', 'fence')
if held[2] ~= ARGV[3] or held[3] ~= ARGV[4] then return {'state', held[1] or ''} end
if held[1] == 'DISPATCHING' then return {'ok', string.format('%.0f', seq)} end
if held[1] ~= 'RESERVED' then return {'state', held[1] or ''} end

local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local key = redis.call('HMGET', KEYS[3], 'd:' .. ARGV[5], 'revoked', 'expires')
if not key[1] then return {'key', 'unknown'} end
if key[2] and key[2] ~= '0' then return {'key', 'revoked'} end
local expiry, expires = tonumber(key[1]), tonumber(key[3] or '0')
if (expiry > 0 and expiry <= now_ms) or (expires > 0 and expires <= now_ms) then return {'key', 'expired'} end

if KEYS[4] then
  local name = redis.call('HMGET', KEYS[4], 'claim', 'state')
  if name[1] ~= ARGV[6] or name[2] ~= 'claimed' then return {'taken'} end
  redis.call('HSET', KEYS[4], 'state', 'sent')
end
redis.call('HSET', KEYS[2], 'state', 'DISPATCHING', 'dispatched', string.format('%.0f', now_ms))
seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
return {'ok', string.format('%.0f', seq)}
