-- Rung parts that nobody claimed in their interval. ARGV: queue, limit.
local list, t = 'queue:' .. ARGV[1] .. ':rung', now()
return rings_of(list, redis.call('ZRANGEBYSCORE', list, '-inf', t, 'LIMIT', 0, ARGV[2]), doubled(t))
