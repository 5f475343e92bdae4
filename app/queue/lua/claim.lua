-- claim: hand out nominations for as many tokens as the worker has room for: tier by weight, tenant by least served, oldest first.
-- KEYS  idx tiers pend
-- ARGV  prefix, consumer, max_jobs, room (tokens; the last job may pass it), then tier and weight in turn, first the one that wins ties
-- Returns a flat list, 5 for each job: job gen tier tenant cost
local idx, tiers, pend = KEYS[1], KEYS[2], KEYS[3]
local prefix, consumer, max_jobs, room = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
if not max_jobs or not room then return redis.error_reply('ERR claim: max_jobs and room are numbers') end
local now = redis.call('TIME')[1]
local claimed, looks = {}, max_jobs + 1000

-- The tier with work whose weighted service is least: over time they share 16:4:1, and none starves.
local function next_tier()
  local best, best_weight, best_served
  for i = 5, #ARGV, 2 do
    if redis.call('EXISTS', 'act:' .. prefix .. ':' .. ARGV[i]) == 1 then
      local served = tonumber(redis.call('HGET', tiers, ARGV[i]) or '0')
      if not best or served < best_served then best, best_weight, best_served = ARGV[i], tonumber(ARGV[i + 1]), served end
    end
  end
  return best, best_weight
end

local function retire(act, tier, tenant)
  local counter = redis.call('ZSCORE', act, tenant)
  redis.call('ZREM', act, tenant)
  redis.call('HSET', 'vtc:' .. prefix .. ':' .. tier, tenant, counter)
end

while #claimed < max_jobs * 5 and room > 0 and looks > 0 do
  looks = looks - 1
  local tier, weight = next_tier()
  if not tier then break end
  local act = 'act:' .. prefix .. ':' .. tier
  local tenant = redis.call('ZRANGE', act, 0, 0)[1]
  local q = 'q:' .. prefix .. ':' .. tier .. ':' .. tenant
  local reply = redis.call('EXISTS', q) == 1
    and redis.call('XREADGROUP', 'GROUP', 'workers', consumer, 'COUNT', 1, 'STREAMS', q, '>')
  if not reply then
    retire(act, tier, tenant)
  else
    local entry, fields = reply[1][2][1][1], reply[1][2][1][2]
    local job, gen, cost = fields[2], fields[4], fields[6]
    if redis.call('HGET', idx, job) == gen .. ':' .. tier .. ':' .. tenant .. ':' .. cost .. ':' .. entry then
      redis.call('ZINCRBY', act, cost, tenant)
      redis.call('HINCRBYFLOAT', tiers, tier, tonumber(cost) / weight)
      redis.call('ZADD', pend, 'NX', now, q)
      room = room - tonumber(cost)
      for _, value in ipairs({job, gen, tier, tenant, cost}) do claimed[#claimed + 1] = value end
    else
      redis.call('XACK', q, 'workers', entry)
      redis.call('XDEL', q, entry)
      if redis.call('XLEN', q) == 0 then redis.call('DEL', q); retire(act, tier, tenant) end
    end
  end
end
return claimed
