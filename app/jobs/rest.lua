#!lua flags=allow-oom
-- A worker that began with a job keeps it, and begins again later: this beginning counts no more, or, where it ended in a
-- mistake of ours, counts for good. Repeating it changes nothing.
--
-- KEYS[1] job  ARGV[1] worker (incarnation)  ARGV[2] 1: it counts
-- Returns 1, or 0 where the job is over, another worker's, or not begun: nothing was changed
local held = redis.call('HMGET', KEYS[1], 'state', 'worker', 'begun')
if held[1] ~= 'queued' or held[2] ~= ARGV[1] or not held[3] then return 0 end
redis.call('HDEL', KEYS[1], 'begun')
if ARGV[2] ~= '1' then redis.call('HINCRBY', KEYS[1], 'starts', -1) end
return 1
