-- refund: put back what a job took that was refused later, once. What has leaked since may have been used by others: it stays taken.
-- KEYS  the mark that this was put back, then one for each bucket, as in admit
-- ARGV  now (microseconds; '' is Redis' own clock), taken (when admit took it), then 2 for each bucket: amount, per_minute
-- Returns whether anything was done (1 or 0), now, then the level of each bucket
local PARTS, MARK_MS = 60000000, 60000
if #KEYS < 2 or #ARGV ~= 2 + 2 * (#KEYS - 1) then return redis.error_reply('ERR refund wants 2 arguments for each bucket') end
local now, taken = tonumber(ARGV[1]), tonumber(ARGV[2])
if not taken then return redis.error_reply('ERR refund: taken is a number') end
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
for i = 3, #ARGV do
  if not tonumber(ARGV[i]) then return redis.error_reply('ERR refund: amount and per_minute are numbers') end
end
local is_new = redis.call('SET', KEYS[1], '1', 'NX', 'PX', MARK_MS)
local reply = {is_new and 1 or 0, now}
for i = 2, #KEYS do
  local amount, per_minute = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local state = redis.pcall('GET', KEYS[i])
  local level, at = string.match(type(state) == 'string' and state or '', '^(%d+) (%d+)$')
  level, at = tonumber(level or 0), tonumber(at or now)
  level = math.max(0, level - math.max(0, now - at) * per_minute)
  local back = math.max(0, amount * PARTS - math.max(0, now - taken) * per_minute)
  if is_new and back > 0 then
    level = math.max(0, level - back)
    if level > 0 then
      redis.call('SET', KEYS[i], string.format('%.0f %.0f', level, now))
      if ARGV[1] == '' then redis.call('PEXPIRE', KEYS[i], string.format('%.0f', level / per_minute / 1000 + 1)) end
    else
      redis.call('DEL', KEYS[i])
    end
  end
  reply[i + 1] = level
end
return reply
