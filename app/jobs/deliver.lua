-- Take webhooks that are due. One that is not reported back in time is due again: it may be sent twice, never lost.
--
-- KEYS[1] hooks due(tenant)  ARGV[1] how many at most  ARGV[2] ms in which it must be reported back
-- Returns their ids
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now_ms), 'LIMIT', 0, ARGV[1])
for _, id in ipairs(found) do redis.call('ZADD', KEYS[1], string.format('%.0f', now_ms + tonumber(ARGV[2])), id) end
return found
