-- claim: hand out nominations for as many tokens as the worker has room for: suspects first and alone, else tier by weight and in it
-- what ran before, tenant by least served, oldest first.
-- KEYS  idx tiers pend depth
-- ARGV  prefix, consumer, max_jobs, room (tokens; the last job may pass it), group (least size of a group of suspects), then tier and
--       weight in turn, first the one that wins ties
-- Returns a flat list, 5 for each job: job gen place tenant cost
local idx, tiers, pend, depth = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local prefix, consumer, max_jobs, room, group = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if not max_jobs or not room or not group then return redis.error_reply('ERR claim: max_jobs, room and group are numbers') end
local now = redis.call('TIME')[1]
local claimed, looks = {}, max_jobs + 1000
local lane  -- of the suspects that this claim hands out, if it does

local function has_work(place) return redis.call('EXISTS', 'act:' .. prefix .. ':' .. place) == 1 end

-- Where to look now, and for work that wasn't charged yet the tier and weight to charge. Of the tiers the one with work whose weighted
-- service is least: over time they share 16:4:1, and none starves.
local function next_place()
  for _, each in ipairs({'solo', 'bisect'}) do
    if (not lane or lane == each) and has_work(each) then return each end
  end
  if lane then return nil end
  local best, best_weight, best_served
  for i = 6, #ARGV, 2 do
    if has_work(ARGV[i]) or has_work(ARGV[i] .. 'again') then
      local served = tonumber(redis.call('HGET', tiers, ARGV[i]) or '0')
      if not best or served < best_served then best, best_weight, best_served = ARGV[i], tonumber(ARGV[i + 1]), served end
    end
  end
  if best and has_work(best .. 'again') then return best .. 'again' end
  return best, best, best_weight
end

local function retire(act, place, tenant)
  local counter = redis.call('ZSCORE', act, tenant)
  redis.call('ZREM', act, tenant)
  redis.call('HSET', 'vtc:' .. prefix .. ':' .. place, tenant, counter)
end

while #claimed < max_jobs * 5 and room > 0 and looks > 0 do
  looks = looks - 1
  local place, tier, weight = next_place()
  if not place then break end
  local act = 'act:' .. prefix .. ':' .. place
  local tenant = redis.call('ZRANGE', act, 0, 0)[1]
  local q = 'q:' .. prefix .. ':' .. place .. ':' .. tenant
  local reply = redis.call('EXISTS', q) == 1
    and redis.call('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', 1, 'STREAMS', q, '>')
  if not reply then
    retire(act, place, tenant)
  else
    local entry, fields = reply[1][2][1][1], reply[1][2][1][2]
    local job, gen, cost = fields[2], fields[4], fields[6]
    if redis.call('HGET', idx, job) == gen .. ':' .. place .. ':' .. tenant .. ':' .. cost .. ':' .. entry then
      redis.call('ZINCRBY', act, cost, tenant)
      if tier then redis.call('HINCRBYFLOAT', tiers, tier, tonumber(cost) / weight) end
      redis.call('ZADD', pend, 'NX', now, q)
      room = room - tonumber(cost)
      for _, value in ipairs({job, gen, place, tenant, cost}) do claimed[#claimed + 1] = value end
      if not lane and place == 'solo' then
        lane, max_jobs = place, 1
      elseif not lane and place == 'bisect' then
        local waiting = tonumber(redis.call('HGET', depth, 'bisect:jobs') or '0')
        lane, max_jobs = place, math.min(max_jobs, math.max(group, math.ceil(waiting / 2)))
      end
    else
      redis.call('XACK', q, 'workers', entry)
      redis.call('XDEL', q, entry)
      if redis.call('XLEN', q) == 0 then redis.call('DEL', q); retire(act, place, tenant) end
    end
  end
end
return claimed
