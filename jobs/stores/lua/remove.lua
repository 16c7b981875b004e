-- Forget a job that has been final for long enough. ARGV: id, removable_ms.
local id, t = ARGV[1], now()
local h = redis.call('HMGET', job(id), 'status', 'finished', 'family')
if not h[1] or not is_final(h[1]) or t - h[2] <= tonumber(ARGV[2]) then return end
forget(id, t)
local family = 'family:' .. h[3]
redis.call('HSET', family, id, 'gone')
redis.call('HSET', 'gone', id, h[3]) -- its files are its family's
local members = redis.call('HGETALL', family)
for n = 2, #members, 2 do
  if members[n] ~= 'gone' then return end
end
for n = 1, #members, 2 do
  redis.call('ZADD', 'trash', t, 'jobs/' .. members[n] .. '/')
  redis.call('HDEL', 'gone', members[n])
end
redis.call('UNLINK', family)
redis.call('ZREM', 'families', h[3])
