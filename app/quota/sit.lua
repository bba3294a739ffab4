-- Take the concurrency places of a reservation that was made without them (`stand` of reserve): all of them or none.
-- Repeating it is answered alike.
--
-- KEYS[1] ledger(tenant)  KEYS[2] reservation  KEYS[3 .. 2+C] concurrency sets
-- ARGV[1] id  ARGV[2] owner  ARGV[3 .. 2+C] the cap of each set
-- Returns {"ok", seq} or {"conc", index} or {"state", state or ""}
local held = redis.call('HMGET', KEYS[2], 'state', 'owner', 'places')
local seq = redis.call('HGET', KEYS[1], 'seq') or '0'
if held[1] ~= 'RESERVED' or held[2] ~= ARGV[2] then return {'state', held[1] or ''} end
if held[3] ~= '{}' then return {'ok', seq} end
local taken = {}
for i = 3, #KEYS do
  if redis.call('SCARD', KEYS[i]) >= tonumber(ARGV[i]) then return {'conc', i - 2} end
  taken[i - 2] = KEYS[i]
end
for _, place in ipairs(taken) do redis.call('SADD', place, ARGV[1]) end
redis.call('HSET', KEYS[2], 'places', cjson.encode(taken))
return {'ok', string.format('%.0f', redis.call('HINCRBY', KEYS[1], 'seq', 1))}
