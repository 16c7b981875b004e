-- Append to a job's capped log. ARGV: id, most, line ...
local id = ARGV[1]
if redis.call('EXISTS', job(id)) == 0 then return end
for n = 3, #ARGV do redis.call('XADD', job(id) .. ':log', 'MAXLEN', ARGV[2], '*', 'line', ARGV[n]) end
