-- share: these tenants' terms hold in this pool from now on, all others have weight 1 and no cap; and where `busy` doesn't add up to
-- what runs (its key was lost), count it anew.
-- KEYS  none but those of common
-- ARGV  prefix, version, and where they follow: 'all', then 2 for each tenant: tenant terms ("weight:cap", no cap: "weight:")
-- Returns 1 where anything was put right; -1 where another version holds and the terms weren't given: nothing was done.
if #ARGV ~= 2 and (#ARGV < 3 or #ARGV % 2 == 0) then return redis.error_reply('ERR share wants 2 arguments for each tenant') end
local ten, run, busy = 'ten:' .. prefix, 'run:' .. prefix, 'busy:' .. prefix
local changed = 0
if redis.call('HGET', ten, ':version') ~= ARGV[2] then
  if not ARGV[3] then return -1 end
  redis.call('DEL', ten)
  redis.call('HSET', ten, ':version', ARGV[2])
  for i = 4, #ARGV, 2 do redis.call('HSET', ten, ARGV[i], ARGV[i + 1]) end
end
local sum = 0
for _, count in ipairs(redis.call('HVALS', busy)) do sum = sum + tonumber(count) end
if sum ~= redis.call('HLEN', run) then
  local counts = {}
  for _, value in ipairs(redis.call('HVALS', run)) do
    local tenant = string.match(value, '^([^:]+):')
    if tenant then counts[tenant] = (counts[tenant] or 0) + 1 end
  end
  redis.call('DEL', busy)
  for tenant, count in pairs(counts) do redis.call('HSET', busy, tenant, count) end
  changed = 1
end
-- Whoever is kept from claims is looked at again: the cap may have grown, or room came where nobody here saw it.
local parked = redis.call('HGETALL', 'full:' .. prefix)
for i = 1, #parked, 2 do
  local _, cap = terms_of(parked[i])
  if not cap or tonumber(redis.call('HGET', busy, parked[i]) or '0') < cap then
    unpark(parked[i])
    changed = 1
  end
end
return changed
