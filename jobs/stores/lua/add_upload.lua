-- Record a stored file. ARGV: id, ttl_ms, field, value ...
local id, ttl = ARGV[1], tonumber(ARGV[2])
if redis.call('EXISTS', 'upload:' .. id) == 0 then
  local t = now()
  redis.call('HSET', 'upload:' .. id, 'created', t, 'expires', t + ttl, unpack(ARGV, 3))
  redis.call('ZADD', 'uploads', t + ttl, id)
end
return redis.call('HGETALL', 'upload:' .. id)
