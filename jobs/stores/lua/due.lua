-- Parts whose back-off is over become ready. ARGV: limit.
local t, rings = now(), {}
for _, key in ipairs(redis.call('ZRANGEBYSCORE', 'due', '-inf', t, 'LIMIT', 0, ARGV[1])) do
  local id, s, g, i = parse(key)
  redis.call('ZREM', 'due', key)
  local p = stage(id, s, 'generation') == g and part(id, s, i)
  if p and p.st == 'later' then rings[#rings + 1] = ready(id, s, g, i, p, t) end
end
return rings
