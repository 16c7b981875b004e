-- Ready parts whose ring nobody confirmed in time, oldest first over all queues. ARGV: limit.
local t, limit, found, rings = now(), tonumber(ARGV[1]), {}, {}
for _, queue in ipairs(redis.call('SMEMBERS', 'queues')) do
  local list = 'queue:' .. queue .. ':unrung'
  local keys = redis.call('ZRANGEBYSCORE', list, '-inf', t, 'WITHSCORES', 'LIMIT', 0, limit)
  for n = 1, #keys, 2 do found[#found + 1] = {keys[n], tonumber(keys[n + 1]), list} end
end
table.sort(found, function(a, b) return a[2] < b[2] end)
for n = 1, math.min(limit, #found) do
  local key, _, list = unpack(found[n])
  for _, one in ipairs(rings_of(list, {key}, function() return t + UNCONFIRMED_MS end)) do rings[#rings + 1] = one end
end
return rings
