-- Which incarnations have a lease that has not run out?
--
-- KEYS[1] leases   ARGV[1..] incarnations   Returns 1 or 0 for each
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local reply = {}
for i, incarnation in ipairs(ARGV) do
  local lease = tonumber(redis.call('ZSCORE', KEYS[1], incarnation) or '0')
  reply[i] = lease > now_ms and 1 or 0
end
return reply
