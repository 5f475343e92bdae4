-- renominate: nominations that were claimed and not decided for `idle_ms` (their worker died in between) are put back, same gen.
-- KEYS  idx pend
-- ARGV  prefix, idle_ms, most streams to look at
-- Returns the number put back. They go to the end of their tenant's stream.
local idx, pend = KEYS[1], KEYS[2]
local idle_ms, most = tonumber(ARGV[2]), tonumber(ARGV[3])
if not idle_ms or not most then return redis.error_reply('ERR renominate: idle_ms and most are numbers') end
local now = tonumber(redis.call('TIME')[1])
local put_back = 0
for _, q in ipairs(redis.call('ZRANGEBYSCORE', pend, '-inf', now - idle_ms / 1000, 'LIMIT', 0, most)) do
  local oldest = -1
  if redis.call('EXISTS', q) == 1 then
    for _, item in ipairs(redis.call('XAUTOCLAIM', q, 'workers', 'renominate', idle_ms, '0', 'COUNT', 100)[2]) do
      if item then
        local entry, fields = item[1], item[2]
        local job, gen, cost = fields[2], fields[4], fields[6]
        local place, tenant = string.match(q, '^q:' .. '.-' .. '}:(%a+):([^:]+)$')
        local wanted = gen .. ':' .. place .. ':' .. tenant .. ':' .. cost .. ':'
        if redis.call('HGET', idx, job) == wanted .. entry then
          local again = redis.call('XADD', q, '*', 'j', job, 'g', gen, 'c', cost)
          redis.call('HSET', idx, job, wanted .. again)
          settle(job, 0)
          if not is_parked(place, tenant) then activate(place, tenant) end
          ring(place, tenant)
          put_back = put_back + 1
        end
        redis.call('XACK', q, 'workers', entry)
        redis.call('XDEL', q, entry)
      end
    end
    -- The oldest claim that is left says when this stream has to be looked at again.
    for _, pending in ipairs(redis.call('XPENDING', q, 'workers', '-', '+', 100)) do
      oldest = math.max(oldest, pending[3])
    end
    if redis.call('XLEN', q) == 0 then
      redis.call('DEL', q)
      local place, tenant = string.match(q, '^q:' .. '.-' .. '}:(%a+):([^:]+)$')
      retire(place, tenant)
    end
  end
  if oldest < 0 then redis.call('ZREM', pend, q) else redis.call('ZADD', pend, now - oldest / 1000, q) end
end
return put_back
