-- A queued job's turn has come: the worker that has the job becomes the owner of its reservation and takes its places, all or
-- none. The money was held when it was queued. Repeating it is answered alike.
--
-- KEYS[1] ledger(tenant)  KEYS[2] reservation  KEYS[3] job  KEYS[4] waiting(tenant)  KEYS[5..] concurrency sets
-- ARGV[1] epoch  ARGV[2] sequence mark  ARGV[3] reservation id  ARGV[4] worker (incarnation)  ARGV[5] job id
-- ARGV[6..] cap of each set
-- Returns {"ok", seq, fence}
--      or {"conc", index}                    concurrency cap of that set is reached; nothing was changed
--      or {"epoch", epoch, seq}
--      or {"state", state | taken | ""}      over, dispatched, seated by another, or the job is another worker's
local int = function(number) return string.format('%.0f', number) end
local found = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
local seq = tonumber(found[2] or '0')
if found[1] ~= ARGV[1] or seq < tonumber(ARGV[2]) then return {'epoch', found[1] or '', int(seq)} end

local held = redis.call('HMGET', KEYS[2], 'state', 'owner', 'fence', 'queued')
if held[1] ~= 'RESERVED' then return {'state', held[1] or ''} end
if held[4] ~= ARGV[5] or redis.call('HGET', KEYS[3], 'worker') ~= ARGV[4] then return {'state', 'taken'} end
if held[2] == ARGV[4] then return {'ok', int(seq), held[3]} end
if held[2] ~= ARGV[5] then return {'state', 'taken'} end

redis.call('ZCARD', KEYS[4])
local taken = {}
for i = 5, #KEYS do
  if redis.call('SCARD', KEYS[i]) >= tonumber(ARGV[i + 1]) then return {'conc', i - 4} end
  taken[i - 4] = KEYS[i]
end
for _, place in ipairs(taken) do redis.call('SADD', place, ARGV[3]) end
local fence = int(tonumber(held[3]) + 1)
redis.call('HSET', KEYS[2], 'owner', ARGV[4], 'fence', fence, 'places', cjson.encode(taken))
redis.call('ZREM', KEYS[4], ARGV[5])
seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
return {'ok', int(seq), fence}
