-- Forget families and uploads whose time is over; their files go to the trash. ARGV: limit.
local t, forgotten = now(), 0
for _, root in ipairs(redis.call('ZRANGEBYSCORE', 'families', '-inf', t, 'LIMIT', 0, ARGV[1])) do
  for _, id in ipairs(redis.call('HKEYS', 'family:' .. root)) do
    forget(id, t)
    redis.call('ZADD', 'trash', t, 'jobs/' .. id .. '/')
    redis.call('HDEL', 'gone', id)
    forgotten = forgotten + 1
  end
  redis.call('UNLINK', 'family:' .. root)
  redis.call('ZREM', 'families', root)
end
for _, upload in ipairs(redis.call('ZRANGEBYSCORE', 'uploads', '-inf', t, 'LIMIT', 0, ARGV[1])) do
  redis.call('ZREM', 'uploads', upload) -- a pinned one comes back with its last pin's end
  if redis.call('SCARD', 'upload:' .. upload .. ':pins') == 0 then
    redis.call('ZADD', 'trash', t, redis.call('HGET', 'upload:' .. upload, 'file'))
    redis.call('UNLINK', 'upload:' .. upload)
    forgotten = forgotten + 1
  end
end
return forgotten
