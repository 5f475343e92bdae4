-- adopt: these jobs run, and a Redis that lost its memory didn't know: they count against their tenants' caps, and are charged nothing.
-- KEYS  none but those of common
-- ARGV  prefix, then 2 for each job: job tenant
-- Returns how many weren't known to run.
if (#ARGV - 1) % 2 ~= 0 then return redis.error_reply('ERR adopt wants 2 arguments for each job') end
local adopted = 0
for i = 2, #ARGV, 2 do
  local job, tenant = ARGV[i], ARGV[i + 1]
  if redis.call('HSETNX', 'run:' .. prefix, job, tenant .. ADOPTED) == 1 then
    redis.call('HINCRBY', 'busy:' .. prefix, tenant, 1)
    adopted = adopted + 1
  end
end
return adopted
