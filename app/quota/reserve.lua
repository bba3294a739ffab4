-- Hold one image, one concurrency place and the price in every window of tenant, key, client token and end user: all of them or none.
-- Idempotent by reservation id. Reads all, decides for all, writes all. With it the job enters its key's list of recent jobs, and its
-- local day, by the server's clock, is fixed: whenever it ends, it is that day's roll-up that moves.
--
-- KEYS[1] ledger(tenant)  KEYS[2] reservation  KEYS[3] outstanding(tenant)  KEYS[4] key(tenant, key id)
-- KEYS[5] usage(tenant, the day's start)  KEYS[6] days(tenant)  KEYS[7] jobs(tenant, key id)
-- KEYS[8 .. 7+C] concurrency sets, then W window hashes, then with `claim` the call's name, with `leader` the flight,
-- or with `queue` the tenant's queue, the job, the tenant's waiting jobs and its queued bytes: always the last four
-- ARGV[1] JSON {id, owner, digest, epoch, mark, amount, spans: [[per, start, end] ...], conc: [cap ...],
--               limits: [[cap, add, span index, kind: usd | img, when the counter is dropped, if it has an end of its own] ...],
--               keep: seconds a window outlives its end, facts: {...},
--               day: {start, date, keep: seconds its roll-up outlives its start, group}, recent: {max, ms},
--               leader: who must lead the flight, if it has one, at_once: RESERVED and DISPATCHING in one step,
--               claim: that has the call's name, if it has one,
--               queue: {job, bytes, keep: ms that it has its name}, for a job that enters the queue with this: the queue owns the hold (`owner` is
--               the job), and places are taken later, by `seat`,
--               stand: hold the rest without a place where none is free; `sit` takes it later}
--               `spans` has the day that `day` says, so that it is held against the clock like every window
-- Returns {"ok", seq, remaining_1 ...}          held (or was held already by this id)
--      or {"stand", seq, index, remaining_1 ...} held, but for the places: that set is full
--      or {"span", per, start, end, now_s}      the caller's idea of a window is not the open one; ask again with this
--      or {"conc", index}                       concurrency cap of that set is reached
--      or {"limit", index, spent, reserved}     that window has no room
--      or {"taken"}                             another call has the name by now
--      or {"follow"}                            somebody else leads the flight: nothing to hold
--      or {"key", reason} | {"epoch", epoch, seq} | {"state", state}
local ask = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1])
local now_ms = now * 1000 + math.floor(tonumber(time[2]) / 1000)
local int = function(number) return string.format('%.0f', number) end

local found = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
local seq = tonumber(found[2] or '0')
if found[1] ~= ask.epoch or seq < ask.mark then return {'epoch', found[1] or '', int(seq)} end

if ask.leader then
  local flight = redis.call('HMGET', KEYS[#KEYS], 'state', 'leader')
  if (flight[1] ~= 'lead' and flight[1] ~= 'sent') or flight[2] ~= ask.leader then return {'follow'} end
end

local target = ask.at_once and 'DISPATCHING' or 'RESERVED'
local state = redis.call('HGET', KEYS[2], 'state')
if state == target then
  if ask.stand and #ask.conc > 0 and redis.call('HGET', KEYS[2], 'places') == '{}' then return {'stand', int(seq), 1} end
  return {'ok', int(seq)}
end
if state then return {'state', state} end

local name = ask.claim and KEYS[8 + #ask.conc + #ask.limits]
if name then
  local held = redis.call('HMGET', name, 'claim', 'state')
  if held[1] ~= ask.claim or held[2] ~= 'claimed' then return {'taken'} end
end

local key = redis.call('HMGET', KEYS[4], 'd:' .. ask.digest, 'revoked', 'expires')
if not key[1] then return {'key', 'unknown'} end
if key[2] and key[2] ~= '0' then return {'key', 'revoked'} end
local expiry, expires = tonumber(key[1]), tonumber(key[3] or '0')
if (expiry > 0 and expiry <= now_ms) or (expires > 0 and expires <= now_ms) then return {'key', 'expired'} end

local opened = {}
for _, span in ipairs(ask.spans) do
  local per, from, to = span[1], span[2], span[3]
  local open = redis.call('HGET', KEYS[1], 'w:' .. per)
  local open_from, open_to
  if open then open_from, open_to = string.match(open, '^(%d+),(%d+)$') end
  if open_to and now < tonumber(open_to) then
    -- The open window stays in force until its end, whatever became of the time zone or the caller's clock.
    if tonumber(open_from) ~= from or tonumber(open_to) ~= to then return {'span', per, open_from, open_to, int(now)} end
  else
    if now < from or now >= to then return {'span', per, '', '', int(now)} end
    opened[per] = int(from) .. ',' .. int(to)
  end
end

local places, full = #ask.conc, nil
for i = 1, places do
  if not full and redis.call('SCARD', KEYS[7 + i]) >= ask.conc[i] then full = i end
end
if full and not ask.stand then return {'conc', full} end

local remaining, held = {}, {}
for i, limit in ipairs(ask.limits) do
  local window = redis.call('HMGET', KEYS[7 + places + i], 'spent', 'reserved')
  local spent, reserved = tonumber(window[1] or '0'), tonumber(window[2] or '0')
  if spent + reserved + limit[2] > limit[1] then return {'limit', i, int(spent), int(reserved)} end
  remaining[i] = int(limit[1] - spent - reserved - limit[2])
  held[i] = {KEYS[7 + places + i], limit[2], limit[4]}
end

-- The keys not read yet: one of a wrong type must fail before anything is written.
redis.call('ZCARD', KEYS[3])
redis.call('HLEN', KEYS[5])
redis.call('ZCARD', KEYS[6])
redis.call('ZCARD', KEYS[7])
local n = #KEYS
if ask.queue then
  redis.call('XLEN', KEYS[n - 3])
  redis.call('HLEN', KEYS[n - 2])
  redis.call('ZCARD', KEYS[n - 1])
  redis.call('GET', KEYS[n])
end

for per, value in pairs(opened) do redis.call('HSET', KEYS[1], 'w:' .. per, value) end
for i, limit in ipairs(ask.limits) do
  redis.call('HINCRBY', KEYS[7 + places + i], 'reserved', int(limit[2]))
  redis.call('EXPIREAT', KEYS[7 + places + i], int(limit[5] or (ask.spans[limit[3]][3] + ask.keep)))
end
local taken = {}
for i = 1, full and 0 or places do
  redis.call('SADD', KEYS[7 + i], ask.id)
  taken[i] = KEYS[7 + i]
end
local facts = {'state', target, 'fence', '0', 'owner', ask.owner, 'amount', int(ask.amount), 'created', int(now_ms),
  'windows', cjson.encode(held), 'places', cjson.encode(taken), 'usage', KEYS[5], 'group', ask.day.group}
for fact, value in pairs(ask.facts) do
  facts[#facts + 1] = fact
  facts[#facts + 1] = value
end
if name then
  for _, fact in ipairs({'name', name, 'claim', ask.claim}) do facts[#facts + 1] = fact end
end
redis.call('HSET', KEYS[2], unpack(facts))
if ask.at_once then redis.call('HSET', KEYS[2], 'dispatched', int(now_ms)) end
if ask.at_once and name then redis.call('HSET', name, 'state', 'sent') end
if ask.at_once and ask.leader then redis.call('HSET', KEYS[#KEYS], 'state', 'sent', 'started', int(now_ms)) end
redis.call('ZADD', KEYS[3], int(now_ms), ask.id)
if redis.call('HSETNX', KEYS[5], 'date', ask.day.date) == 1 then
  redis.call('EXPIREAT', KEYS[5], int(ask.day.start + ask.day.keep))
  redis.call('ZADD', KEYS[6], int(ask.day.start), int(ask.day.start))
  redis.call('ZREMRANGEBYSCORE', KEYS[6], '-inf', int(now - ask.day.keep))
end
redis.call('ZADD', KEYS[7], int(now_ms), ask.id)
redis.call('ZREMRANGEBYRANK', KEYS[7], 0, -1 - ask.recent.max)
redis.call('PEXPIRE', KEYS[7], int(ask.recent.ms))
if ask.queue then
  local entry = redis.call('XADD', KEYS[n - 3], '*', 'job', ask.queue.job)
  redis.call('HSET', KEYS[n - 2], 'state', 'queued', 'entry', entry, 'reservation', ask.id, 'created', int(now_ms),
    'bytes', int(ask.queue.bytes))
  redis.call('PERSIST', KEYS[n - 2]) -- until its end: what is held for it is found by it, however long nobody works
  redis.call('HSET', KEYS[2], 'queued', ask.queue.job)
  if name then redis.call('HSET', name, 'until', int(now_ms + ask.queue.keep)) end
  redis.call('INCRBY', KEYS[n], int(ask.queue.bytes))
  redis.call('ZADD', KEYS[n - 1], int(now_ms), ask.queue.job)
end
seq = redis.call('HINCRBY', KEYS[1], 'seq', 1)
if full then return {'stand', int(seq), full, unpack(remaining)} end
return {'ok', int(seq), unpack(remaining)}
