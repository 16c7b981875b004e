-- By task: for how many ms the part that has been ready for longest is so. ARGV: look, how many are passed over at most.
local t, found = now(), {}
for _, task in ipairs(redis.call('SMEMBERS', 'tasks')) do
  local list = 'task:' .. task .. ':ready'
  for _ = 1, ARGV[1] do
    local key, since = unpack(redis.call('ZRANGE', list, 0, 0, 'WITHSCORES'))
    if not key then
      redis.call('SREM', 'tasks', task)
      break
    end
    local id, s, g, i = parse(key)
    local p = stage(id, s, 'generation') == g and not is_final(field(id, 'status')) and part(id, s, i)
    if p and p.st == 'ready' then
      found[#found + 1] = {task, math.max(0, t - since)}
      break
    end
    redis.call('ZREM', list, key) -- taken by an older version, which does not know this list
  end
end
return found
