-- true_up: these attempts are over: charge their tenants and tiers what was really computed instead of what was expected.
-- KEYS  none but those of common
-- ARGV  prefix, then 2 for each job: job work ("-": it never ran, charge nothing; "?": not known, what was charged stays)
-- Returns how many were known to run. The others were told before, or lost: then the expectation stays charged.
if (#ARGV - 1) % 2 ~= 0 then return redis.error_reply('ERR true_up wants 2 arguments for each job') end
for i = 3, #ARGV, 2 do
  local work = ARGV[i]
  if work ~= '-' and work ~= '?' and not tonumber(work) then return redis.error_reply('ERR true_up: work is a number, - or ?') end
end
local mean, weight_of_new = 'mean:' .. prefix, 1 / 16
local known = 0
for i = 2, #ARGV, 2 do
  local job, work = ARGV[i], ARGV[i + 1]
  local cost, tenant = settle(job, work == '-' and 0 or tonumber(work))
  if cost then
    known = known + 1
    if tonumber(work) and cost > 0 then
      local ratio = tonumber(work) / cost
      for _, whose in ipairs({tenant, ':all'}) do
        local before = tonumber(redis.call('HGET', mean, whose) or '') or ratio
        redis.call('HSET', mean, whose, string.format('%.6g', before + (ratio - before) * weight_of_new))
      end
    end
  end
end
return known
