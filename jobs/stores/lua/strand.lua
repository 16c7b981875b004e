-- No worker could take these parts' signatures: they are rung again later and later. ARGV: first_ms, most_ms, member ...
local t = now()
for n = 3, #ARGV do
  local id, s, g, i = parse(ARGV[n])
  local p = id and stage(id, s, 'generation') == g and part(id, s, i)
  if p and p.st == 'ready' and not is_final(field(id, 'status')) then
    unring(id, s, g, i)
    p.st, p.nb = 'later', t + math.min(ARGV[1] * 2 ^ count(id, s, 'no_worker'), tonumber(ARGV[2]))
    save(id, s, i, p)
    redis.call('ZADD', 'due', p.nb, ARGV[n])
    grow(id, s, 'no_worker', 1)
    touch(id, t)
    tell(id, '+')
  end
end
