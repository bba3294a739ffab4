-- Hand jobs that a worker had, and cannot do, to another; one that was handed on a moment ago stays where it is.
--
-- KEYS[1] queue(tenant)  ARGV[1] group  ARGV[2] worker (incarnation)  ARGV[3] ms since it was handed to somebody last
-- ARGV[4..] entries
-- Returns {entry, job, entry, job ...} that are this worker's from here on
local jobs = {}
for i = 4, #ARGV do
  for _, entry in ipairs(redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[i])) do
    if entry then
      jobs[#jobs + 1] = entry[1]
      jobs[#jobs + 1] = entry[2][2]
    end
  end
end
return jobs
