-- mend: of these nominated jobs, put back those whose stream entry is lost, and their streams into act and pend. Same gen.
-- KEYS  idx pend
-- ARGV  prefix ("{pool}"), then the jobs, in the order in which lost ones are put back
-- Returns the number of things that were put right. What is in order is only read, so that repeating it changes nothing.
local idx, pend = KEYS[1], KEYS[2]
local now = redis.call('TIME')[1]
local delivered = {}  -- stream -> the last id that its group handed out; false where there is no stream
local mended = 0

local function is_after(id, other)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  ms, seq, other_ms, other_seq = tonumber(ms), tonumber(seq), tonumber(other_ms), tonumber(other_seq)
  return ms > other_ms or (ms == other_ms and seq > other_seq)
end

local function open_group(q)
  redis.call('XGROUP', 'CREATE', q, 'workers', '0', 'MKSTREAM')
  delivered[q] = '0-0'
end

local function look_up(q)
  if delivered[q] ~= nil then return end
  delivered[q] = false
  if redis.call('EXISTS', q) == 0 then return end
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', q)) do
    local fields = {}
    for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
    if fields['name'] == 'workers' then delivered[q] = fields['last-delivered-id'] end
  end
  if not delivered[q] then open_group(q) end
end

-- Whether the tenant had to be put back among those that claims look at.
local function bring_back(place, tenant)
  if is_parked(place, tenant) or not activate(place, tenant) then return false end
  ring(place, tenant)
  return true
end

for i = 2, #ARGV do
  local job, known = ARGV[i], redis.call('HGET', idx, ARGV[i])
  local gen, place, tenant, cost, entry
  if known then gen, place, tenant, cost, entry = string.match(known, '^(%d+):(%a+):([^:]+):(%d+):(%d+%-%d+)$') end
  if gen then
    local q = 'q:' .. prefix .. ':' .. place .. ':' .. tenant
    look_up(q)
    -- A stream that was lost begins anew, also with its ids: another job's entry may have this one's.
    local found = delivered[q] and redis.call('XRANGE', q, entry, entry)[1]
    local is_there = found and found[2][2] == job
    if is_there and is_after(entry, delivered[q]) then
      if bring_back(place, tenant) then mended = mended + 1 end
    elseif is_there and #redis.call('XPENDING', q, 'workers', entry, entry, 1) > 0 then
      mended = mended + redis.call('ZADD', pend, 'NX', now, q)
    else
      -- No claim can find it: its entry is gone, or was handed out and is in nobody's hand.
      if is_there then redis.call('XDEL', q, entry) end
      if not delivered[q] then open_group(q) end
      local again = redis.call('XADD', q, '*', 'j', job, 'g', gen, 'c', cost)
      redis.call('HSET', idx, job, gen .. ':' .. place .. ':' .. tenant .. ':' .. cost .. ':' .. again)
      bring_back(place, tenant)
      ring(place, tenant)
      mended = mended + 1
    end
  end
end
return mended
