-- The broker confirmed these rings. ARGV: queue, member, queue, member ...
local due = now() + FALLBACK_MS
for n = 1, #ARGV, 2 do
  local list = 'queue:' .. ARGV[n]
  if redis.call('ZREM', list .. ':unrung', ARGV[n + 1]) == 1 then redis.call('ZADD', list .. ':rung', due, ARGV[n + 1]) end
end
