-- Keep fields of what is asked of a job: value and expiry in one step, so that nothing is ever there without one.
--
-- KEYS[1] inputs or job  ARGV[1] ms  ARGV[2..] field, value ...
-- Returns 1
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
return redis.call('PEXPIRE', KEYS[1], ARGV[1])
