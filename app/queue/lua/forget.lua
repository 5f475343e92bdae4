-- forget: these tenants have had nothing for long: forget what claims expect of them, and their counters, where nothing of theirs is here.
-- KEYS  mean busy full
-- ARGV  prefix, number of places, the places, then the tenants
-- Returns how many tenants were forgotten.
local mean, busy, full = KEYS[1], KEYS[2], KEYS[3]
local num_places = tonumber(ARGV[2])
if not num_places or #ARGV < 2 + num_places then return redis.error_reply('ERR forget: say how many places, and which') end

local function is_here(tenant)
  if redis.call('HEXISTS', busy, tenant) == 1 or redis.call('HEXISTS', full, tenant) == 1 then return true end
  for i = 3, 2 + num_places do
    if redis.call('ZSCORE', 'act:' .. prefix .. ':' .. ARGV[i], tenant) then return true end
    if redis.call('EXISTS', 'q:' .. prefix .. ':' .. ARGV[i] .. ':' .. tenant) == 1 then return true end
  end
  return false
end

local forgotten = 0
for i = 3 + num_places, #ARGV do
  local tenant = ARGV[i]
  if string.sub(tenant, 1, 1) ~= ':' and not is_here(tenant) then
    local dropped = redis.call('HDEL', mean, tenant)
    for place = 3, 2 + num_places do dropped = dropped + redis.call('HDEL', 'vtc:' .. prefix .. ':' .. ARGV[place], tenant) end
    if dropped > 0 then forgotten = forgotten + 1 end
  end
end
return forgotten
