-- Is this key valid now, and does the request rate of tenant and key (or of an end user) allow one more request?
-- Rates are GCRA in whole microseconds of the server's clock: all are taken, or none.
--
-- KEYS[1] ledger(tenant)   KEYS[2] key(tenant, key id)   KEYS[3..] rate keys, expiring when at rest
-- ARGV[1] token digest     ARGV[2] epoch the caller knows   ARGV[3] sequence mark the caller remembers
-- ARGV[4] version of the key's policy the caller knows
-- ARGV[5..] per rate key: emission interval in us, burst (requests)
-- Returns {"ok", now_us, seq, remaining_1, reset_us_1, ...}
--      or {"rate", now_us, index of the refusing rate, retry_us, remaining_1, reset_us_1, ...}
--      or {"key", reason: unknown | revoked | expired}
--      or {"policy", version, policy JSON}      the caller reads it and asks again
--      or {"epoch", found epoch, found seq}     nothing was done
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])

local found = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
local seq = tonumber(found[2] or '0')
if found[1] ~= ARGV[2] or seq < tonumber(ARGV[3]) then
  return {'epoch', found[1] or '', string.format('%.0f', seq)}
end

local key = redis.call('HMGET', KEYS[2], 'd:' .. ARGV[1], 'revoked', 'expires', 'version')
local expiry, expires = tonumber(key[1] or '-1'), tonumber(key[3] or '0')
if expiry < 0 then return {'key', 'unknown'} end
if key[2] and key[2] ~= '0' then return {'key', 'revoked'} end
if (expiry > 0 and expiry * 1000 <= now) or (expires > 0 and expires * 1000 <= now) then return {'key', 'expired'} end
if key[4] ~= ARGV[4] then return {'policy', key[4], redis.call('HGET', KEYS[2], 'policy') or '{}'} end

local count = #KEYS - 2
local arrivals, reply, refused, retry = {}, {}, 0, 0
for i = 1, count do
  local interval, burst = tonumber(ARGV[3 + 2 * i]), tonumber(ARGV[4 + 2 * i])
  local tat = math.max(tonumber(redis.call('GET', KEYS[2 + i]) or '0'), now)
  -- A clock that stepped back must not lock anyone out for longer than the limit itself.
  tat = math.min(tat, now + interval * burst)
  local room = now + interval * burst - tat
  if room < interval then
    if interval - room > retry then refused, retry = i, interval - room end
    arrivals[i] = tat
  else
    arrivals[i] = tat + interval
    room = room - interval
  end
  reply[2 * i - 1] = string.format('%.0f', math.floor(room / interval))
  reply[2 * i] = string.format('%.0f', arrivals[i] - now)
end
if refused > 0 then
  return {'rate', string.format('%.0f', now), refused, string.format('%.0f', retry), unpack(reply)}
end
for i = 1, count do
  redis.call('SET', KEYS[2 + i], string.format('%.0f', arrivals[i]), 'PX', math.ceil((arrivals[i] - now) / 1000) + 1000)
end
return {'ok', string.format('%.0f', now), string.format('%.0f', seq), unpack(reply)}
