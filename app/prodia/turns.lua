-- The fair queue for upstream slots, and the breaker of each job type. One process reports what it uses and what it wants, in absolute
-- numbers, so that a lost reply mends itself at the next call; the script
-- knows every process's slots in use and wants, shares the free slots by weight (fewest slots per weight first, lending idle share),
-- and grants the caller its part. Other processes' parts are left free for their next call.
--
-- KEYS[1] leases  KEYS[2] held (hash: incarnation|tenant|type -> slots)  KEYS[3] wanted (same fields -> count|weight|since)
-- KEYS[4] gates (hash: type -> JSON {fails, open_ms, until, probe, probe_until, pause})
-- ARGV[1] JSON {me, total, caps: {type: cap}, using: [[tenant, type, count] ...], want: [[tenant, type, count, weight, age_ms] ...],
--               news: [[type, "ok" | "fail" | "untold" | "pause", ms] ...], threshold, open_ms, open_max_ms, probe_ms}
-- Returns {in use over all, [tenant, type, granted] ..., {"gate", type, wait_ms, "open" | "pause"} for each wanted type that is not let through now,
--          or "used" for each used one whose gate is not plainly open,
--          and {"wait", tenant, type, percent}: how often each slot must come free, in hundredths, before the last that is wanted has one,
--          and {"others"} where other processes wait for more than is left for them}
local ask = cjson.decode(ARGV[1])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local int = function(number) return string.format('%.0f', number) end
local split = function(text) return string.match(text, '^([^|]*)|([^|]*)|([^|]*)$') end

-- Gates: what upstream answers said of each type.
local gates = {}
local function gate(type)
  if gates[type] == nil then
    local stored = redis.call('HGET', KEYS[4], type)
    gates[type] = stored and cjson.decode(stored) or {fails = 0, open_ms = 0, ['until'] = 0, probe = '', probe_until = 0, pause = 0}
  end
  return gates[type]
end
local changed = {}
for _, item in ipairs(ask.news) do
  local type, word, ms = item[1], item[2], item[3]
  local g = gate(type)
  if word == 'ok' then
    if g.fails > 0 or g['until'] > 0 then changed[type] = true end
    g.fails, g.open_ms, g['until'], g.probe, g.probe_until = 0, 0, 0, '', 0
  elseif word == 'untold' then
    if g.probe == ask.me then
      g.probe, g.probe_until = '', 0
      changed[type] = true
    end
  elseif word == 'pause' then
    g.pause = math.max(g.pause, now + ms)
    changed[type] = true
    if g.probe == ask.me then g.probe, g.probe_until = '', 0 end
  else
    g.fails = g.fails + 1
    if g['until'] > 0 and g.probe == ask.me then
      g.open_ms = math.min(g.open_ms * 2, ask.open_max_ms)
      g['until'] = now + g.open_ms
      g.probe, g.probe_until = '', 0
    elseif g['until'] == 0 and g.fails >= ask.threshold then
      g.open_ms = ask.open_ms
      g['until'] = now + g.open_ms
    end
    changed[type] = true
  end
end
for type in pairs(changed) do redis.call('HSET', KEYS[4], type, cjson.encode(gates[type])) end

-- Who lives, who holds, who wants.
local lives = {[ask.me] = true}
local function alive(incarnation)
  if lives[incarnation] == nil then
    lives[incarnation] = tonumber(redis.call('ZSCORE', KEYS[1], incarnation) or '0') > now
  end
  return lives[incarnation]
end
local in_use, by_tenant, by_type = 0, {}, {}
local function occupy(tenant, type, count)
  in_use = in_use + count
  by_tenant[tenant] = (by_tenant[tenant] or 0) + count
  by_type[type] = (by_type[type] or 0) + count
end
local using, stored_use = {}, {}
for _, item in ipairs(ask.using) do
  using[ask.me .. '|' .. item[1] .. '|' .. item[2]] = item[3]
  occupy(item[1], item[2], item[3])
end
local held = redis.call('HGETALL', KEYS[2])
for i = 1, #held, 2 do
  local incarnation, tenant, type = split(held[i])
  if incarnation == ask.me and using[held[i]] then
    stored_use[held[i]] = tonumber(held[i + 1])
  elseif incarnation ~= ask.me and alive(incarnation) then
    occupy(tenant, type, tonumber(held[i + 1]))
  else
    redis.call('HDEL', KEYS[2], held[i])
  end
end

local queue = {}
local function enqueue(incarnation, tenant, type, count, weight, since)
  if count > 0 then
    queue[#queue + 1] = {who = incarnation, tenant = tenant, type = type, count = count, weight = weight, since = since}
  end
end
local wanted = redis.call('HGETALL', KEYS[3])
local mine = {}
for i = 1, #wanted, 2 do
  local incarnation, tenant, type = split(wanted[i])
  if incarnation == ask.me then
    mine[wanted[i]] = true
  elseif alive(incarnation) then
    local count, weight, since = string.match(wanted[i + 1], '^(%d+)|(%d+)|(%d+)$')
    enqueue(incarnation, tenant, type, tonumber(count), tonumber(weight), tonumber(since))
  else
    redis.call('HDEL', KEYS[3], wanted[i])
  end
end

local reply = {}
for _, item in ipairs(ask.want) do
  local tenant, type = item[1], item[2]
  local g = gate(type)
  local wait = math.max(g.pause - now, 0)
  local let, limit = wait == 0, item[3]
  if let and g['until'] > 0 then
    -- Open, or half open with one probe over the whole fleet.
    if now < g['until'] then
      let, wait = false, g['until'] - now
    elseif g.probe ~= '' and now < g.probe_until then
      let, wait = false, g.probe_until - now
    else
      limit = 1
    end
  end
  if let then
    enqueue(ask.me, tenant, type, limit, item[4], now - item[5])
  else
    reply[#reply + 1] = {'gate', type, int(wait), g['until'] > 0 and 'open' or 'pause'}
  end
end
-- Who only uses a type may take its slots again without asking, and has to hear of its gate all the same.
for _, item in ipairs(ask.using) do
  local g = gate(item[2])
  if g.pause > now or g['until'] > 0 then
    reply[#reply + 1] = {'gate', item[2], int(math.max(g.pause, g['until'], now) - now), 'used'}
  end
end

-- Share what is free: one slot at a time to the tenant that has the fewest per weight; the longest waiting first among equals.
local granted = {}
local probes = {}
while in_use < ask.total do
  local best, best_load
  for _, want in ipairs(queue) do
    local cap = ask.caps[want.type]
    if want.count > 0 and (not cap or (by_type[want.type] or 0) < cap) then
      local load = (by_tenant[want.tenant] or 0) / want.weight
      if not best or load < best_load or (load == best_load and want.since < best.since) then best, best_load = want, load end
    end
  end
  if not best then break end
  best.count = best.count - 1
  in_use = in_use + 1
  by_tenant[best.tenant] = (by_tenant[best.tenant] or 0) + 1
  by_type[best.type] = (by_type[best.type] or 0) + 1
  if best.who == ask.me then
    local g = gate(best.type)
    local probing = g['until'] > 0
    if not (probing and probes[best.type]) then
      if probing then
        probes[best.type] = true
        g.probe, g.probe_until = ask.me, now + ask.probe_ms
        redis.call('HSET', KEYS[4], best.type, cjson.encode(g))
      end
      local field = best.tenant .. '|' .. best.type
      granted[field] = (granted[field] or 0) + 1
    end
  end
end

-- How long what is left will wait: by the tenant's share of all slots, and by the cap of the type.
local left_of, left_type, weights, weighed, others = {}, {}, 0, {}, false
for _, want in ipairs(queue) do
  if want.count > 0 then
    others = others or want.who ~= ask.me
    left_of[want.tenant] = (left_of[want.tenant] or 0) + want.count
    left_type[want.type] = (left_type[want.type] or 0) + want.count
    if not weighed[want.tenant] then weights, weighed[want.tenant] = weights + want.weight, true end
  end
end
for _, want in ipairs(queue) do
  if want.who == ask.me and want.count > 0 then
    local rounds = left_of[want.tenant] * weights / (ask.total * want.weight)
    if ask.caps[want.type] then rounds = math.max(rounds, left_type[want.type] / ask.caps[want.type]) end
    reply[#reply + 1] = {'wait', want.tenant, want.type, math.ceil(rounds * 100)}
  end
end

if others then reply[#reply + 1] = {'others'} end  -- wait for the cap of a type: a slot that comes free may be theirs

for field, count in pairs(using) do
  if stored_use[field] ~= count then redis.call('HSET', KEYS[2], field, int(count)) end
end
for field, count in pairs(granted) do
  redis.call('HINCRBY', KEYS[2], ask.me .. '|' .. field, count)
  local tenant, type = string.match(field, '^([^|]*)|([^|]*)$')
  reply[#reply + 1] = {'slot', tenant, type, count}
end
for _, item in ipairs(ask.want) do
  local field = ask.me .. '|' .. item[1] .. '|' .. item[2]
  local left = item[3] - (granted[item[1] .. '|' .. item[2]] or 0)
  mine[field] = nil
  if left > 0 then
    redis.call('HSET', KEYS[3], field, left .. '|' .. item[4] .. '|' .. int(now - item[5]))
  else
    redis.call('HDEL', KEYS[3], field)
  end
end
for field in pairs(mine) do redis.call('HDEL', KEYS[3], field) end
return {in_use, unpack(reply)}
