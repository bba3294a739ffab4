-- Which jobs of a tenant were handed to a worker and have not ended?
--
-- KEYS[1] queue(tenant)  ARGV[1] group  ARGV[2] how many at most
-- Returns {{entry, worker} ...}
local found = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[2])
local reply = {}
if found.err then return reply end
for i, pending in ipairs(found) do reply[i] = {pending[1], pending[2]} end
return reply
