-- claim: hand out nominations for as many tokens as the worker has room for: suspects first and alone, else tier by weight and in it
-- what ran before, tenant by least served, oldest first.
-- KEYS  idx tiers pend depth
-- ARGV  prefix, consumer, max_jobs, room (tokens of all together; the last job may pass it), group (least size of a group of suspects),
--       lead (tokens), credit (of a tenant that returns from idle, tokens), aging (seconds), now (seconds; '' = TIME), levels, then for each tier,
--       first the one that wins ties and may take from those behind it: tier weight, and for each level, the most privileged first:
--       room jobs (what a job of that level may take, also from the levels behind it)
-- Returns a flat list, 6 for each job: job gen place tenant cost level (counted from 0)
local idx, tiers, pend, depth = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local consumer, max_jobs, room, group = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local lead, credit, aging, levels = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[10])
if not (max_jobs and room and group and lead and credit and aging and levels) or (#ARGV - 10) % (2 + 2 * levels) ~= 0 then
  return redis.error_reply('ERR claim: max_jobs, room, group, lead, credit, aging and levels are numbers, and each tier has 2 + 2 levels arguments')
end
local time = redis.call('TIME')
local now = tonumber(ARGV[9]) or tonumber(time[1]) + tonumber(time[2]) / 1000000
local claimed, looks = {}, max_jobs + 1000
local lane  -- of the suspects that this claim hands out, if it does

local known_work = {}
local function has_work(place)
  if known_work[place] == nil then known_work[place] = redis.call('EXISTS', 'act:' .. prefix .. ':' .. place) == 1 end
  return known_work[place]
end

local each_tier, by_name, fields = {}, {}, {}
for i = 11, #ARGV, 2 + 2 * levels do
  local tier = {name = ARGV[i], weight = tonumber(ARGV[i + 1]), room = {}, jobs = {}}
  for level = 1, levels do
    tier.room[level], tier.jobs[level] = tonumber(ARGV[i + 2 * level]), tonumber(ARGV[i + 1 + 2 * level])
  end
  tier.rank = #each_tier + 1
  each_tier[tier.rank], by_name[tier.name] = tier, tier
  fields[#fields + 1] = tier.name
  fields[#fields + 1] = tier.name .. ':at'
end
local values = redis.call('HMGET', tiers, unpack(fields))
for rank, tier in ipairs(each_tier) do
  tier.served, tier.at = tonumber(values[2 * rank - 1] or '0'), tonumber(values[2 * rank] or '0')
end

-- A tenant that returned from idle is privileged until it has caught up with where the claims stood then: level 1 while the first part of
-- a whole credit is left, and so on, so that a burst in pieces has the levels of one at once. The last level is everybody's. What ran before has the first: others came in while it was away.
local function level_of(place, tenant, counter)
  local ahead = 'ahead:' .. prefix .. ':' .. place
  local stand, from = string.match(redis.call('HGET', ahead, tenant) or '', '^([^:]+):([^:]+)$')
  if not stand then return levels end
  local left = (tonumber(stand) - tonumber(counter)) / (tonumber(stand) - tonumber(from))
  if left > 0 then return math.max(1, math.min(levels - 1, math.floor((1 - left) * (levels - 1)) + 1)) end
  redis.call('HDEL', ahead, tenant)
  return levels
end

local function has_room_at(tier, level) return tier.room[level] > 0 and tier.jobs[level] > 0 end

-- For whoever is next there.
local function has_room_in(tier)
  if has_room_at(tier, levels) then return true end
  if not has_room_at(tier, 1) then return false end
  if has_work(tier.name .. 'again') then return true end
  local least = redis.call('ZRANGE', 'act:' .. prefix .. ':' .. tier.name, 0, 0, 'WITHSCORES')
  return least[1] ~= nil and has_room_at(tier, level_of(tier.name, least[1], least[2]))
end

-- Of the tiers with work the one whose weighted service is least: over time they share 16:4:1, and none starves. One that had no turn
-- for too long goes first, once. Where the one whose turn it is has no room, a tier that may take room from it runs ahead of its
-- share, by `lead` tokens at most: then it waits, until the other has had its turn.
local function next_tier()
  local due, best
  for _, tier in ipairs(each_tier) do
    if has_work(tier.name) or has_work(tier.name .. 'again') then
      local has_room = has_room_in(tier)
      if has_room and now - tier.at >= aging then return tier end
      if not due or tier.served < due.served then due = tier end
      if has_room and (not best or tier.served < best.served) then best = tier end
    end
  end
  if best and best ~= due and (best.served - due.served) * best.weight > lead then return nil end
  return best
end

-- Where to look now, and the tier to charge.
local function next_place()
  for _, each in ipairs({'solo', 'bisect'}) do
    if (not lane or lane == each) and has_work(each) then return each end
  end
  if lane then return nil end
  local tier = next_tier()
  if not tier then return nil end
  if has_work(tier.name .. 'again') then return tier.name .. 'again', tier end
  return tier.name, tier
end

local terms = {}  -- by tenant, read once a claim
local function look_up(tenant)
  if not terms[tenant] then
    local weight, cap = terms_of(tenant)
    local mean = redis.call('HGET', 'mean:' .. prefix, tenant) or redis.call('HGET', 'mean:' .. prefix, ':all')
    terms[tenant] = {weight = weight, cap = cap, mean = tonumber(mean or '1')}
  end
  return terms[tenant]
end

local function is_at_cap(tenant)
  local cap = look_up(tenant).cap
  return cap and tonumber(redis.call('HGET', 'busy:' .. prefix, tenant) or '0') >= cap
end

-- The claim charges what the job is expected to cost: what its tenant's jobs have really cost so far, of what they may cost.
local function charge(place, tier, tenant, job, cost, level)
  local its = look_up(tenant)
  local work = math.max(1, math.floor(cost * its.mean + 0.5))
  redis.call('ZINCRBY', 'act:' .. prefix .. ':' .. place, work / its.weight, tenant)
  if tier and place ~= tier.name then move_counter(tier.name, tenant, work / its.weight) end
  if tier then
    tier.served = tonumber(redis.call('HINCRBYFLOAT', tiers, tier.name, work / tier.weight))
    for rank = tier.rank, #each_tier do
      local other = each_tier[rank]
      for each = rank == tier.rank and level or 1, levels do
        other.room[each], other.jobs[each] = other.room[each] - cost, other.jobs[each] - 1
      end
    end
  end
  local mark = tier and (tier.name .. ':' .. tier.weight) or (place .. ':0')
  local value = string.format('%s:%s:%d:%d:%d', tenant, mark, its.weight, work, cost)
  if redis.call('HSETNX', 'run:' .. prefix, job, value) == 0 then  -- an older claim of it was never decided
    settle(job, 0)
    redis.call('HSET', 'run:' .. prefix, job, value)
  end
  redis.call('HINCRBY', 'busy:' .. prefix, tenant, 1)
end

local marks = {}  -- place -> the counter of whom it served last, as it was: where one who returns from idle begins, and it never falls
local tier_marks = {}
while #claimed < max_jobs * 6 and room > 0 and looks > 0 do
  looks = looks - 1
  local place, tier = next_place()
  if not place then break end
  local least = redis.call('ZRANGE', 'act:' .. prefix .. ':' .. place, 0, 0, 'WITHSCORES')
  local tenant = least[1]
  if not tenant then
    known_work[place] = false
  elseif is_at_cap(tenant) then
    park(place, tenant)
    known_work[place] = nil
  else
    local q = 'q:' .. prefix .. ':' .. place .. ':' .. tenant
    local reply = redis.call('EXISTS', q) == 1
      and redis.call('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', 1, 'STREAMS', q, '>')
    if not reply then
      retire(place, tenant)
      known_work[place] = nil
    else
      local entry, item = reply[1][2][1][1], reply[1][2][1][2]
      local job, gen, cost = item[2], item[4], item[6]
      if redis.call('HGET', idx, job) == gen .. ':' .. place .. ':' .. tenant .. ':' .. cost .. ':' .. entry then
        marks[place] = math.max(tonumber(least[2]), marks[place] or tonumber(least[2]))
        if tier then
          tier.at, tier_marks[tier.name .. ':at'], tier_marks[':now'], tier_marks[':credit'] = now, now, tier.served, credit
        end
        local level = not tier and levels or place ~= tier.name and 1 or level_of(place, tenant, least[2])
        charge(place, tier, tenant, job, tonumber(cost), level)
        redis.call('ZADD', pend, 'NX', time[1], q)
        room = room - tonumber(cost)
        for _, value in ipairs({job, gen, place, tenant, cost, level - 1}) do claimed[#claimed + 1] = value end
        if not lane and place == 'solo' then
          lane, max_jobs = place, 1
        elseif not lane and place == 'bisect' then
          local waiting = tonumber(redis.call('HGET', depth, 'bisect:jobs') or '0')
          lane, max_jobs = place, math.min(max_jobs, math.max(group, math.ceil(waiting / 2)))
        end
      else
        redis.call('XACK', q, 'workers', entry)
        redis.call('XDEL', q, entry)
        if redis.call('XLEN', q) == 0 then
          redis.call('DEL', q)
          retire(place, tenant)
          known_work[place] = nil
        end
      end
    end
  end
end
if tier_marks[':credit'] then
  for _, tier in ipairs(each_tier) do tier_marks[tier.name .. ':credit'] = credit / tier.weight end
end
for place, counter in pairs(marks) do
  local vtc = 'vtc:' .. prefix .. ':' .. place
  if counter > tonumber(redis.call('HGET', vtc, ':now') or '0') then redis.call('HSET', vtc, ':now', string.format('%.17g', counter)) end
end
for field, value in pairs(tier_marks) do redis.call('HSET', tiers, field, string.format('%.17g', value)) end
-- Nothing waits there any more: for each ring that is left, a worker would come in vain. What comes rings anew.
known_work = {}
for _, tier in ipairs(each_tier) do
  local bell = 'bell:' .. prefix .. ':' .. tier.name
  if not has_work(tier.name) and not has_work(tier.name .. 'again') then redis.call('DEL', bell, bell .. ':full') end
end
return claimed
