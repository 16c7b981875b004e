-- Rings by deficit. ARGV: queue, messages, limit.
local list = 'queue:' .. ARGV[1] .. ':rung'
local deficit = math.min(redis.call('ZCARD', list) - ARGV[2], tonumber(ARGV[3]))
if deficit <= 0 or not redis.call('SET', list .. ':swept', 1, 'NX', 'PX', 1000) then return {} end
return rings_of(list, redis.call('ZRANGE', list, 0, deficit - 1), doubled(now()))
