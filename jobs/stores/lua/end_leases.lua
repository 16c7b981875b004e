-- Count a loss for each lease that ran out. ARGV: limit, grace_ms, delay_ms.
local up = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
if up * 1000 < tonumber(ARGV[2]) then return {} end
local t, ended = now(), {}
for _, key in ipairs(redis.call('ZRANGEBYSCORE', 'leases', '-inf', t, 'LIMIT', 0, ARGV[1])) do
  local id, s, g, i = parse(key)
  redis.call('ZREM', 'leases', key)
  local p = stage(id, s, 'generation') == g and part(id, s, i)
  if p and p.st == 'leased' and not is_final(field(id, 'status')) then -- the lease before may have failed the job
    local error = error_json('worker-lost', 'The worker that held the part was lost.', stage(id, s, 'name'), i)
    local delay_ms = math.min(ARGV[3] * (2 ^ p.lo - 1), BACK_OFF_MAX_MS)
    local rings = end_attempt(id, s, g, i, p, 'loss', error, delay_ms, t)
    local h = redis.call('HMGET', job(id), 'status', 'pipeline', 'plan', 'trace')
    ended[#ended + 1] = {h[1], rings, {id, s, g, i, tostring(p.f), h[2], h[3], h[4] or '', p.ca, t}}
  end
end
return ended
