-- admit: take from all of a caller's buckets, or from none.
-- A bucket is a string "level at": what is in it, in 1/60,000,000 of a request or token, and when that was, in microseconds. It leaks
-- `per_minute` such parts a microsecond, which is `per_minute` whole ones a minute, so that all of this is whole numbers. A bucket that
-- isn't there, or is something else, is empty. All keys bear one hash tag.
-- KEYS  one for each bucket
-- ARGV  now (microseconds; '' is Redis' own clock), then 4 for each bucket: amount, per_minute, burst, floor (the least level that it
--       has, in its parts: what a process has let in while it couldn't ask here)
-- Returns admitted (1 or 0), now, then the level of each bucket after the decision. A refusal takes nothing.
local PARTS = 60000000
if #KEYS == 0 or #ARGV ~= 1 + 4 * #KEYS then return redis.error_reply('ERR admit wants 4 arguments for each bucket') end
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local levels, amounts, stale, admitted = {}, {}, {}, 1
for i = 1, #KEYS do
  local amount, per_minute, burst, floor = unpack(ARGV, 4 * i - 2, 4 * i + 1)
  amount, per_minute, burst, floor = tonumber(amount), tonumber(per_minute), tonumber(burst), tonumber(floor)
  if not (amount and per_minute and burst and floor) then return redis.error_reply('ERR admit: amount, per_minute, burst and floor are numbers') end
  local state = redis.pcall('GET', KEYS[i])
  local level, at = string.match(type(state) == 'string' and state or '', '^(%d+) (%d+)$')
  level, at = tonumber(level or 0), tonumber(at or now)
  -- A clock that was set back leaks nothing, and stops nothing: from here on it counts.
  stale[i] = at > now
  level = math.max(0, level - math.max(0, now - at) * per_minute)
  if floor > level then level, stale[i] = floor, true end
  if level + amount * PARTS > burst * PARTS then admitted = 0 end
  levels[i], amounts[i] = level, amount * PARTS
end
local reply = {admitted, now}
for i = 1, #KEYS do
  local level = levels[i]
  if admitted == 1 then level = level + amounts[i] end
  if level > 0 and (stale[i] or level > levels[i]) then
    redis.call('SET', KEYS[i], string.format('%.0f %.0f', level, now))
    -- An empty bucket needs no key: it goes when all has leaked. But time that is passed in isn't Redis' own.
    if ARGV[1] == '' then redis.call('PEXPIRE', KEYS[i], string.format('%.0f', level / tonumber(ARGV[4 * i - 1]) / 1000 + 1)) end
  end
  reply[i + 2] = level
end
return reply
