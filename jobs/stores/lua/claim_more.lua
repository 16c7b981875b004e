-- Take further ready parts of one pipeline's stage, of those no attempt at which has ended badly. ARGV: pipeline, stage, queue, worker, device, lease_ms, look, token ...
local pipeline, s, queue, worker, device, lease_ms, look = unpack(ARGV, 1, 7)
local tokens = {unpack(ARGV, 8)}
local t, claims, taken = now(), {}, 'claimed:' .. tokens[1]
local function take(key, token, again)
  local id, number, g, i = parse(key)
  if number == s and field(id, 'pipeline') == pipeline then
    local p = not again and part(id, s, i)
    if p and p.fa + p.lo > 0 then return nil end
    local found = claim(id, s, g, i, worker, token, lease_ms, device, t)
    if found then claims[#claims + 1] = found end
    return found
  end
end

local before = redis.call('HGETALL', taken) -- a repeated command: what these tokens took the first time
for n = 1, #before, 2 do take(before[n], before[n + 1], true) end
if #before > 0 then return claims end

for _, list in ipairs({'rung', 'unrung'}) do
  for _, key in ipairs(redis.call('ZRANGE', 'queue:' .. queue .. ':' .. list, 0, look - 1)) do
    local token = tokens[#claims + 1]
    if not token then break end
    if take(key, token) then redis.call('HSET', taken, key, token) end
  end
end
redis.call('PEXPIRE', taken, lease_ms)
return claims
