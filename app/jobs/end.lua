#!lua flags=allow-oom
-- The end of a job, once: its state and what is told of it; it leaves the queue, what was asked is forgotten, but for what
-- its surface says again, and its webhook, if it has one, is due.
--
-- KEYS[1] job  KEYS[2] queue(tenant)  KEYS[3] waiting(tenant)  KEYS[4] queued bytes(tenant)  KEYS[5] inputs
-- KEYS[6] hooks due(tenant)  KEYS[7] hook
-- ARGV[1] job id  ARGV[2] succeeded | failed | cancelled  ARGV[3] answer (JSON)  ARGV[4] ms that it is told of
-- ARGV[5] group of workers  ARGV[6] type of the webhook, or "": none  ARGV[7] its body  ARGV[8] its id
-- Returns 1, or 0 where it had ended before: nothing was changed
local held = redis.call('HMGET', KEYS[1], 'state', 'entry', 'bytes', 'hook')
if held[1] ~= 'queued' then return 0 end
redis.call('XLEN', KEYS[2])
redis.call('ZCARD', KEYS[3])
redis.call('GET', KEYS[4])
redis.call('ZCARD', KEYS[6])
local echo = redis.call('HGET', KEYS[5], 'echo')
local time = redis.call('TIME')
local now_ms = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'answer', ARGV[3], 'ended', now_ms)
if echo then redis.call('HSET', KEYS[1], 'echo', echo) end
redis.call('HDEL', KEYS[1], 'worker')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.pcall('XACK', KEYS[2], ARGV[5], held[2])
redis.call('XDEL', KEYS[2], held[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('DECRBY', KEYS[4], held[3])
redis.call('UNLINK', KEYS[5])
if (held[4] or '') ~= '' and ARGV[6] ~= '' then
  redis.call('HSET', KEYS[7], 'url', held[4], 'type', ARGV[6], 'body', ARGV[7], 'job', ARGV[1], 'attempts', '0', 'made', now_ms)
  redis.call('ZADD', KEYS[6], now_ms, ARGV[8])
end
return 1
