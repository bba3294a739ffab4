#!lua flags=allow-oom
-- A seated job was not sent: its reservation goes back to the queue, which owns it again, and its places are free. Called by its
-- worker, or by the reaper of a dead one. Repeating it is answered alike.
--
-- KEYS[1] ledger(tenant)  KEYS[2] reservation  KEYS[3] waiting(tenant)  KEYS[4..] its places
-- ARGV[1] reservation id  ARGV[2] owner it is taken from  ARGV[3] its fence  ARGV[4] job id
-- Returns {"ok", seq} or {"state", state or ""}     dispatched, over, or somebody else's: nothing was changed
local held = redis.call('HMGET', KEYS[2], 'state', 'owner', 'fence', 'queued', 'created', 'places')
local next_fence = string.format('%.0f', tonumber(ARGV[3]) + 1)
local seq = redis.call('HGET', KEYS[1], 'seq') or '0'
if held[1] == 'RESERVED' and held[2] == ARGV[4] and held[3] == next_fence then return {'ok', seq} end
if held[1] ~= 'RESERVED' or held[2] ~= ARGV[2] or held[3] ~= ARGV[3] or held[4] ~= ARGV[4] then
  return {'state', held[1] or ''}
end
local places = cjson.decode(held[6])
local matches = #KEYS == 3 + #places
for i, place in ipairs(places) do matches = matches and KEYS[3 + i] == place end
if not matches then return redis.error_reply('ERR the keys are not those of the reservation') end

redis.call('ZCARD', KEYS[3])
for _, place in ipairs(places) do redis.call('SCARD', place) end
for _, place in ipairs(places) do redis.call('SREM', place, ARGV[1]) end
redis.call('HSET', KEYS[2], 'owner', ARGV[4], 'fence', next_fence, 'places', '[]')
redis.call('ZADD', KEYS[3], held[5], ARGV[4])
seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
return {'ok', string.format('%.0f', seq)}
