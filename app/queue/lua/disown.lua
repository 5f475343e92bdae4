-- disown: these jobs wait. Where one counts as running since it was adopted, it was adopted too late: forget that. What a claim has charged stays.
-- KEYS  none but those of common
-- ARGV  prefix, then the jobs
-- Returns how many were forgotten.
local disowned = 0
for i = 2, #ARGV do
  local known = redis.call('HGET', 'run:' .. prefix, ARGV[i])
  if known and string.sub(known, -#ADOPTED) == ADOPTED and settle(ARGV[i]) then disowned = disowned + 1 end
end
return disowned
