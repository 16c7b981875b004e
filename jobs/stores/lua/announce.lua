-- A worker is there for so long; 0: it leaves. ARGV: name, what it says of itself, ttl_ms.
local name, text, ttl_ms = unpack(ARGV)
local t = now()
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', 'workers', '-inf', t)) do
  redis.call('ZREM', 'workers', gone)
  redis.call('HDEL', 'workers:told', gone)
end
if tonumber(ttl_ms) > 0 then
  redis.call('ZADD', 'workers', t + ttl_ms, name)
  redis.call('HSET', 'workers:told', name, text)
else
  redis.call('ZREM', 'workers', name)
  redis.call('HDEL', 'workers:told', name)
end
