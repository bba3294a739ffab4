#!lua flags=allow-oom
-- How an attempt to deliver a webhook went: it is done, dead, or due again later. One that another attempt has ended stays ended.
--
-- KEYS[1] hooks due(tenant)  KEYS[2] hook  KEYS[3] hooks done or dead(tenant)
-- ARGV[1] id  ARGV[2] ms until the next attempt, or "": it is over  ARGV[3] how it was answered  ARGV[4] ms that it is kept then
-- Returns 1, or 0 where it was over before
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZCARD', KEYS[3])
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('HINCRBY', KEYS[2], 'attempts', 1)
redis.call('HSET', KEYS[2], 'last', ARGV[3])
if ARGV[2] ~= '' then
  redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms + tonumber(ARGV[2])), ARGV[1])
  return 1
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[3], string.format('%.0f', now_ms), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', now_ms - tonumber(ARGV[4])))
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
