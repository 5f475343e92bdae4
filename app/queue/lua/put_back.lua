-- put_back: their tenant is at its cap: nominate these claimed jobs again with the same gen, and keep the tenant from claims until one
-- of its jobs ends.
-- KEYS  idx
-- ARGV  prefix, then 2 for each job: job gen
-- Returns the number put back. They go to the end of their tenant's stream.
if (#ARGV - 1) % 2 ~= 0 then return redis.error_reply('ERR put_back wants 2 arguments for each job') end
local idx, put_back, at_cap = KEYS[1], 0, {}
for i = 2, #ARGV, 2 do
  local job, gen = ARGV[i], ARGV[i + 1]
  local known = redis.call('HGET', idx, job)
  local old_gen, place, tenant, cost, entry
  if known then old_gen, place, tenant, cost, entry = string.match(known, '^(%d+):(%a+):([^:]+):(%d+):(.+)$') end
  local q = known and 'q:' .. prefix .. ':' .. place .. ':' .. tenant
  if old_gen == gen and redis.call('HEXISTS', 'run:' .. prefix, job) == 1 and redis.call('EXISTS', q) == 1 then
    local again = redis.call('XADD', q, '*', 'j', job, 'g', gen, 'c', cost)
    redis.call('XACK', q, 'workers', entry)
    redis.call('XDEL', q, entry)
    redis.call('HSET', idx, job, gen .. ':' .. place .. ':' .. tenant .. ':' .. cost .. ':' .. again)
    settle(job, 0)
    at_cap[#at_cap + 1] = {place, tenant}
    put_back = put_back + 1
  end
end
for _, each in ipairs(at_cap) do park(each[1], each[2]) end
return put_back
