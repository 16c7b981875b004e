-- How many jobs wait to be started, and how many start a second now.
local t, per_s = now(), 0
for _, line in ipairs(redis.call('SMEMBERS', 'lines')) do per_s = per_s + starts_per_s(line, t) end
return {redis.call('ZCARD', 'jobs:status:accepted'), tostring(per_s)}
