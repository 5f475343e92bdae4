-- ack: these nominations were decided (started, or no longer wanted): take each out, if it is still of that gen.
-- KEYS  idx depth
-- ARGV  prefix, then 2 for each job: job gen
-- Returns the number taken out.
local idx, depth = KEYS[1], KEYS[2]
if (#ARGV - 1) % 2 ~= 0 then return redis.error_reply('ERR ack wants 2 arguments for each job') end
local taken = 0
for i = 2, #ARGV, 2 do
  local job, gen = ARGV[i], ARGV[i + 1]
  local known = redis.call('HGET', idx, job)
  local old_gen, place, tenant, cost, entry
  if known then old_gen, place, tenant, cost, entry = string.match(known, '^(%d+):(%a+):([^:]+):(%d+):(.+)$') end
  if old_gen == gen then
    local q = 'q:' .. prefix .. ':' .. place .. ':' .. tenant
    redis.pcall('XACK', q, 'workers', entry)
    redis.call('XDEL', q, entry)
    redis.call('HDEL', idx, job)
    redis.call('HINCRBY', depth, place .. ':jobs', -1)
    redis.call('HINCRBY', depth, place .. ':tokens', -tonumber(cost))
    -- An entry that is pending is still in the stream, so an empty stream has nothing pending.
    if redis.call('XLEN', q) == 0 then
      redis.call('DEL', q)
      retire(place, tenant)
    end
    taken = taken + 1
  end
end
return taken
