-- common: what the scripts share; it stands before each of them. ARGV[1] of a script that calls any of this is the prefix ("{pool}").
-- A tenant with work is in act, with its virtual counter; one without, or at its cap, has its counter in vtc.
local prefix = ARGV[1]

local function tier_of(place) return string.match(place, '^(%a+)again$') or place end

-- weight, and the most jobs that may run at once (nil: no limit)
local function terms_of(tenant)
  local weight, cap = string.match(redis.call('HGET', 'ten:' .. prefix, tenant) or '', '^(%d+):(%d*)$')
  return tonumber(weight or '1'), tonumber(cap or '')
end

local function move_counter(place, tenant, amount)
  local act = 'act:' .. prefix .. ':' .. place
  if redis.call('ZSCORE', act, tenant) then
    redis.call('ZINCRBY', act, amount, tenant)
  else
    redis.call('HINCRBYFLOAT', 'vtc:' .. prefix .. ':' .. place, tenant, amount)
  end
end

-- A tenant that returns from idle is lifted to the least counter of the active ones, or to where the claims stand (Sheng et al., "Fairness
-- in Serving Large Language Models", OSDI 2024, algorithm 2). Of the share that it left to them meanwhile it keeps the credit of one
-- worker's room: so a quiet tenant's burst goes ahead of a flood, and who idles for long saves no more. Until it has caught up with
-- where the claims stood, or used up its credit (`ahead`), it may also take what others of its tier hold.
-- Where the claims stood may be far ahead of all: jobs were expected to cost much, and didn't. Then the active ones count.
local function activate(place, tenant)
  local act, vtc = 'act:' .. prefix .. ':' .. place, 'vtc:' .. prefix .. ':' .. place
  if redis.call('ZSCORE', act, tenant) then return false end
  local stand = tonumber(redis.call('HGET', vtc, ':now') or '0')
  local others = tonumber(redis.call('ZRANGE', act, 0, 0, 'WITHSCORES')[2]) or stand
  local credit = tonumber(redis.call('HGET', 'tiers:' .. prefix, ':credit') or '0')
  local floor = credit > 0 and math.min(others, stand - credit / terms_of(tenant)) or others
  local counter = math.max(tonumber(redis.call('HGET', vtc, tenant) or '0'), floor)
  local ahead, reach = 'ahead:' .. prefix .. ':' .. place, credit / terms_of(tenant)
  local first = redis.call('ZREVRANGE', act, 0, 0, 'WITHSCORES')
  if first[1] and redis.call('HEXISTS', ahead, first[1]) == 0 then stand = math.min(stand, tonumber(first[2])) end
  local till = math.min(stand, counter + reach)
  if counter < till then redis.call('HSET', ahead, tenant, string.format('%.17g:%.17g', till, till - reach)) end
  redis.call('ZADD', act, string.format('%.17g', counter), tenant)
  redis.call('HDEL', vtc, tenant)
  return true
end

-- A tier that returns from idle, or from the caps of all its tenants, is lifted as a tenant is, less a credit: its jobs that come one by
-- one, far below its share, find it idle each time, and would each begin where those are who fill the workers. To be called before any
-- of its tenants is active; with `now`, its wait for a turn begins then.
local function wake_tier(place, now)
  local tier, tiers, active = tier_of(place), 'tiers:' .. prefix, 'act:' .. prefix .. ':'
  if redis.call('EXISTS', active .. tier, active .. tier .. 'again') > 0 then return end
  local own, floor = tonumber(redis.call('HGET', tiers, tier) or '0'), nil
  for _, other in ipairs({'interactive', 'standard', 'batch'}) do
    if other ~= tier and redis.call('EXISTS', active .. other, active .. other .. 'again') > 0 then
      local value = tonumber(redis.call('HGET', tiers, other) or '0')
      if not floor or value < floor then floor = value end
    end
  end
  floor = (floor or tonumber(redis.call('HGET', tiers, ':now') or '0')) - tonumber(redis.call('HGET', tiers, tier .. ':credit') or '0')
  redis.call('HSET', tiers, tier, string.format('%.17g', math.max(own, floor)))
  if now then redis.call('HSET', tiers, tier .. ':at', string.format('%.17g', now)) end
end

local function retire(place, tenant)
  local act = 'act:' .. prefix .. ':' .. place
  local counter = redis.call('ZSCORE', act, tenant)
  if not counter then return end
  redis.call('ZREM', act, tenant)
  redis.call('HDEL', 'ahead:' .. prefix .. ':' .. place, tenant)
  redis.call('HSET', 'vtc:' .. prefix .. ':' .. place, tenant, counter)
end

-- Wake workers: those with room for the tier, and where a tenant may take the room of others those without it, too; any for suspects.
local function ring(place, tenant, count)
  local is_suspect = place == 'solo' or place == 'bisect'
  local bell = 'bell:' .. prefix .. ':' .. (is_suspect and 'any' or tier_of(place))
  for _ = 1, math.min(count or 1, 64) do redis.call('LPUSH', bell, '1') end
  redis.call('LTRIM', bell, 0, 63)
  local may_displace = place == tier_of(place) .. 'again' or redis.call('HEXISTS', 'ahead:' .. prefix .. ':' .. place, tenant) == 1
  if not is_suspect and may_displace then
    for _ = 1, math.min(count or 1, 64) do redis.call('LPUSH', bell .. ':full', '1') end
    redis.call('LTRIM', bell .. ':full', 0, 63)
    redis.call('PEXPIRE', bell .. ':full', 1000)  -- for those who are full now, not for whoever is later
  end
end

-- Out of the claims' sight until one of its jobs ends.
local function park(place, tenant)
  retire(place, tenant)
  local full, places = 'full:' .. prefix, ''
  for each in string.gmatch(redis.call('HGET', full, tenant) or '', '%a+') do
    if each ~= place then places = places .. each .. ' ' end
  end
  redis.call('HSET', full, tenant, places .. place)
end

local function unpark(tenant)
  local full = 'full:' .. prefix
  local places = redis.call('HGET', full, tenant)
  if not places then return false end
  redis.call('HDEL', full, tenant)
  for place in string.gmatch(places, '%a+') do
    if redis.call('EXISTS', 'q:' .. prefix .. ':' .. place .. ':' .. tenant) == 1 then
      if place ~= 'solo' and place ~= 'bisect' then wake_tier(place) end  -- what others had meanwhile isn't saved up
      activate(place, tenant)
      ring(place, tenant)
    end
  end
  return true
end

local function is_parked(place, tenant)
  for each in string.gmatch(redis.call('HGET', 'full:' .. prefix, tenant) or '', '%a+') do
    if each == place then return true end
  end
  return false
end

-- What `run` says of a job that a Redis which lost its memory was told of: charged nothing. A claim's charge is never 0.
local ADOPTED = ':solo:0:1:0:0'

-- Forget that a job runs, and charge its tenant and tier `work` instead of what its claim charged; nil: leave it at that.
-- Returns its nomination's cost and what was charged, or nil where it isn't known to run.
local function settle(job, work, tier_now)
  local known = redis.call('HGET', 'run:' .. prefix, job)
  if not known then return nil end
  local tenant, tier, tier_weight, weight, charged, cost = string.match(known, '^([^:]+):(%a+):(%d+):(%d+):(%d+):(%d+)$')
  redis.call('HDEL', 'run:' .. prefix, job)
  if not tenant then return nil end
  if redis.call('HINCRBY', 'busy:' .. prefix, tenant, -1) <= 0 then redis.call('HDEL', 'busy:' .. prefix, tenant) end
  if work and tonumber(tier_weight) > 0 then
    local delta = work - tonumber(charged)
    move_counter(tier, tenant, delta / tonumber(weight))
    redis.call('HINCRBYFLOAT', 'tiers:' .. prefix, tier, delta / tonumber(tier_weight))
  end
  unpark(tenant)
  return tonumber(cost), tenant
end
