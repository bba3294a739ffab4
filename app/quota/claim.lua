-- Take a name for a call, or learn what became of the call that has it. A name is free where nothing was sent under it: nobody has
-- it, or its call is over its deadline or died with its process. A call from which it was taken cannot dispatch any more.
--
-- KEYS[1] name (hash: claim, owner, digest, seed, request, state: claimed | sent | ended, until, end, reply; expires after ARGV[8])
-- ARGV[1] claim  ARGV[2] who claims (incarnation)  ARGV[3] digest of the request  ARGV[4] seed, if none is known
-- ARGV[5] request id  ARGV[6] ms until the call's deadline  ARGV[7] owner known to be dead, or ""  ARGV[8] time to live in ms
-- Returns {"yours", seed}                            nothing was sent yet; the seed is that of an equal call before it
--      or {"mismatch"}                               the name has another request
--      or {"running", owner}                         claimed by somebody else, or sent
--      or {"ended", claim, seed, request, end, reply or ""}
local time = redis.call('TIME')
local now_ms = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local held = redis.call('HMGET', KEYS[1], 'state', 'claim', 'owner', 'until', 'digest', 'seed', 'request', 'end', 'reply')
local state, same = held[1], held[5] == ARGV[3]
local over = state == 'claimed' and (held[2] == ARGV[1] or held[3] == ARGV[7] or now_ms > tonumber(held[4]))
if not state or over then
  local seed = same and held[6] or ARGV[4]
  redis.call('HSET', KEYS[1], 'state', 'claimed', 'claim', ARGV[1], 'owner', ARGV[2], 'digest', ARGV[3], 'seed', seed,
    'request', ARGV[5], 'until', string.format('%.0f', now_ms + tonumber(ARGV[6])))
  redis.call('PEXPIRE', KEYS[1], ARGV[8])
  return {'yours', seed}
end
if not same then return {'mismatch'} end
if state == 'ended' then return {'ended', held[2], held[6], held[7], held[8], held[9] or ''} end
return {'running', held[3]}
