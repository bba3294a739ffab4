-- Hand the oldest jobs that nobody was handed yet to a worker.
--
-- KEYS[1] queue(tenant)  ARGV[1] group  ARGV[2] worker (incarnation)  ARGV[3] how many at most
-- Returns {entry, job, entry, job ...}
if redis.call('EXISTS', KEYS[1]) == 0 then return {} end
redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0')
local found = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[3], 'STREAMS', KEYS[1], '>')
local jobs = {}
if not found then return jobs end
for _, entry in ipairs(found[1][2]) do
  jobs[#jobs + 1] = entry[1]
  jobs[#jobs + 1] = entry[2][2]
end
return jobs
