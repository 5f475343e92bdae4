-- recount: if the depth doesn't add up to what idx holds (its key was lost), count it anew.
-- KEYS  idx depth
-- ARGV  the places
-- Returns 1 where it counted, 0 where it added up: then it has looked at nothing but two lengths.
local idx, depth = KEYS[1], KEYS[2]
local jobs, adds_up = 0, true
for _, place in ipairs(ARGV) do
  local here = tonumber(redis.call('HGET', depth, place .. ':jobs') or '0')
  local tokens = tonumber(redis.call('HGET', depth, place .. ':tokens') or '0')
  jobs = jobs + here
  if here < 0 or tokens < 0 then adds_up = false end
end
if adds_up and jobs == redis.call('HLEN', idx) then return 0 end
local counts, cursor = {}, '0'
repeat
  local page = redis.call('HSCAN', idx, cursor, 'COUNT', 1000)
  cursor = page[1]
  for i = 2, #page[2], 2 do
    local place, cost = string.match(page[2][i], '^%d+:(%a+):[^:]+:(%d+):')
    if place then
      counts[place .. ':jobs'] = (counts[place .. ':jobs'] or 0) + 1
      counts[place .. ':tokens'] = (counts[place .. ':tokens'] or 0) + tonumber(cost)
    end
  end
until cursor == '0'
redis.call('DEL', depth)
for field, count in pairs(counts) do redis.call('HSET', depth, field, string.format('%.0f', count)) end
return 1
