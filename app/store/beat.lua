#!lua flags=allow-oom
-- Renew one incarnation's lease on the server's clock; forget those that ran out long ago.
--
-- KEYS[1] leases   ARGV[1] incarnation   ARGV[2] lease in ms   Returns 1
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms + tonumber(ARGV[2])), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now_ms - 3600000))
return 1
