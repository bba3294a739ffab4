-- Add one process's counts of free deliveries to the roll-up of a day. A batch whose number is not above the last one of
-- that process was written already, and its reply lost.
--
-- KEYS[1] usage(tenant, the day's start)  KEYS[2] days(tenant)
-- ARGV[1] process (incarnation)  ARGV[2] number of the batch  ARGV[3] the day's start  ARGV[4] its date
-- ARGV[5] seconds that the roll-up outlives its start  ARGV[6..] field, amount ...
-- Returns 1, or 0 for a batch that was written before
local last = 'batch\31' .. ARGV[1]
if tonumber(redis.call('HGET', KEYS[1], last) or '0') >= tonumber(ARGV[2]) then return 0 end
redis.call('ZCARD', KEYS[2]) -- of a wrong type it must fail before anything is written

if redis.call('HSETNX', KEYS[1], 'date', ARGV[4]) == 1 then
  redis.call('EXPIREAT', KEYS[1], string.format('%.0f', tonumber(ARGV[3]) + tonumber(ARGV[5])))
  redis.call('ZADD', KEYS[2], ARGV[3], ARGV[3])
end
redis.call('HSET', KEYS[1], last, ARGV[2])
for i = 6, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
return 1
