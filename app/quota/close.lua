#!lua flags=allow-oom
-- A named call is over and nothing was sent for it: its answer is kept, or the name is free again. Also puts the answer to a
-- job that ended without one. A name that another call has taken, or whose job was sent, stays as it is.
--
-- KEYS[1] name  ARGV[1] claim  ARGV[2] reply, or "": free  ARGV[3] time to live in ms
-- Returns 1, or 0 when nothing was changed
local held = redis.call('HMGET', KEYS[1], 'claim', 'state', 'reply')
local unanswered = held[2] == 'ended' and not held[3] and ARGV[2] ~= ''
if held[1] ~= ARGV[1] or not (held[2] == 'claimed' or unanswered) then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], 'state', 'ended', 'reply', ARGV[2])
if not unanswered then redis.call('HSET', KEYS[1], 'end', 'FREE') end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
