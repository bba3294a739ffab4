-- A worker begins with a job that it was handed. Of two that were handed the same job, the one that knows who had it before
-- has it; from then on the other can neither take its seat nor start again. A beginning counts once, until it is
-- rested; that of a worker that died never is. Repeating it is answered alike.
--
-- KEYS[1] job  ARGV[1] worker (incarnation)  ARGV[2] worker that had it before and is dead, or ""
-- Returns {"ok", starts so far} or {"over", state or ""} or {"taken", worker that has it}
local held = redis.call('HMGET', KEYS[1], 'state', 'worker', 'starts', 'begun')
if held[1] ~= 'queued' then return {'over', held[1] or ''} end
if held[2] == ARGV[1] and held[4] then return {'ok', held[3]} end
if held[2] ~= ARGV[1] and (held[2] or '') ~= ARGV[2] then return {'taken', held[2] or ''} end
redis.call('HSET', KEYS[1], 'worker', ARGV[1], 'begun', '1')
return {'ok', string.format('%.0f', redis.call('HINCRBY', KEYS[1], 'starts', 1))}
