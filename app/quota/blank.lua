-- Empty the answer of a call that is over: its name stays taken, and what it was answered is not kept any more.
--
-- KEYS[1] name  ARGV[1] what takes the answer's place
-- Returns 1, or 0 where there is no answer, or it is this one already
local held = redis.call('HMGET', KEYS[1], 'state', 'reply')
if held[1] ~= 'ended' or not held[2] or held[2] == ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'reply', ARGV[1])
return 1
