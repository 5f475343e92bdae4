-- enqueue: nominate jobs, each (job, gen) at most once; an older gen of the same job is taken out.
-- KEYS  idx depth epoch tiers
-- ARGV  prefix ("{pool}"), force (1 = also while the epoch is missing: the rebuild), now (seconds; '' = TIME), then 5 for each job:
--       job gen place tenant cost
-- Returns the number of jobs added, or -1 where the epoch is missing: this Redis lost its memory, and the rebuild will bring the
-- job in its order.
local idx, depth, epoch = KEYS[1], KEYS[2], KEYS[3]
local force, now = ARGV[2], tonumber(ARGV[3] or '') or tonumber(redis.call('TIME')[1])
if (#ARGV - 3) % 5 ~= 0 then return redis.error_reply('ERR enqueue wants 5 arguments for each job') end
for i = 4, #ARGV, 5 do
  if not tonumber(ARGV[i + 1]) or not tonumber(ARGV[i + 4]) then return redis.error_reply('ERR enqueue: gen and cost are numbers') end
end
if force ~= '1' and redis.call('EXISTS', epoch) == 0 then return -1 end

local awake = {solo = true, bisect = true}
local any_parked = redis.call('EXISTS', 'full:' .. prefix) == 1
local added, rings = 0, {}
for i = 4, #ARGV, 5 do
  local job, gen, place, tenant, cost = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  local known = redis.call('HGET', idx, job)
  local old_gen, old_place, old_tenant, old_cost, old_entry
  if known then old_gen, old_place, old_tenant, old_cost, old_entry = string.match(known, '^(%d+):(%a+):([^:]+):(%d+):(.+)$') end
  if not old_gen or tonumber(old_gen) < tonumber(gen) then
    if old_gen then
      local old = 'q:' .. prefix .. ':' .. old_place .. ':' .. old_tenant
      redis.pcall('XACK', old, 'workers', old_entry)
      redis.call('XDEL', old, old_entry)
      redis.call('HINCRBY', depth, old_place .. ':jobs', -1)
      redis.call('HINCRBY', depth, old_place .. ':tokens', -tonumber(old_cost))
    end
    local q = 'q:' .. prefix .. ':' .. place .. ':' .. tenant
    if redis.call('EXISTS', q) == 0 then redis.call('XGROUP', 'CREATE', q, 'workers', '0', 'MKSTREAM') end
    local entry = redis.call('XADD', q, '*', 'j', job, 'g', gen, 'c', cost)
    redis.call('HSET', idx, job, gen .. ':' .. place .. ':' .. tenant .. ':' .. cost .. ':' .. entry)
    redis.call('HINCRBY', depth, place .. ':jobs', 1)
    redis.call('HINCRBY', depth, place .. ':tokens', tonumber(cost))
    if tonumber(gen) > 1 then settle(job, 0) end  -- what its last claim charged; the next charges anew
    if not awake[place] then wake_tier(place, now) end
    awake[place] = true
    if not any_parked or not is_parked(place, tenant) then activate(place, tenant) end
    added = added + 1
    local whose = place .. ':' .. tenant
    rings[whose] = (rings[whose] or 0) + 1
  end
end
for whose, count in pairs(rings) do
  local place, tenant = string.match(whose, '^(%a+):(.+)$')
  ring(place, tenant, count)
end
return added
