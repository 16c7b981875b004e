-- Take a part. Shared with claim_more.

-- What older claims of an emitter left is void; the files of its payloads go to the trash.
local function void(id, s, generation, t)
  for _, i in ipairs(redis.call('SMEMBERS', under(id, s, 'open'))) do unring(id, s, stage(id, s, 'generation'), i) end
  for _, text in ipairs(redis.call('HVALS', under(id, s, 'parts'))) do throw_away(cjson.decode(text).fl, t) end
  for _, what in ipairs({'parts', 'payloads', 'outputs', 'errors', 'artifacts', 'open', 'waiting'}) do
    redis.call('UNLINK', under(id, s, what))
  end
  set_stage(id, s, 'total', 0, 'done', 0, 'dead', 0, 'closed', 0, 'generation', generation)
end

local function claim(id, s, g, i, worker, token, lease_ms, device, t)
  local h = redis.call('HMGET', job(id), 'status', 'deadline', 's' .. s .. '.generation', 'n', 'pipeline', 'plan', 'params', 'input',
    'family', 'trace')
  if not h[1] or is_final(h[1]) or h[3] ~= g or (h[2] and tonumber(h[2]) <= t) then return nil end
  local p = part(id, s, i)
  if not p then return nil end
  local key, following = member(id, s, g, i), tonumber(s) + 1
  local function taken()
    return {id, s, g, i, tostring(p.f), token, redis.call('ZSCORE', 'leases', key), h[5], h[6], h[7], h[8],
      redis.call('HGET', under(id, s, 'payloads'), i), tostring(p.fa), tostring(p.lo), h[9], math.max(0, p.ca - p.ra), h[10] or '', h[2]}
  end
  if p.st == 'leased' and p.tk == token then return taken() end -- protection: token
  if not (p.st == 'ready' or (p.st == 'later' and p.nb <= t)) then return nil end
  if p.lt == token then return nil end -- a late repeat of a claim that has ended: its finish would look repeated too

  unring(id, s, g, i)
  grow(id, s, 'waited_ms', math.max(0, t - p.ra))
  p.st, p.f, p.tk, p.wk, p.ca, p.nb, p.r = 'leased', p.f + 1, token, worker, t, nil, nil
  save(id, s, i, p)
  redis.call('ZADD', 'leases', t + lease_ms, key)
  set_stage(id, s, 'device', device)
  redis.call('HDEL', job(id), 's' .. s .. '.no_worker')
  local emits = following < tonumber(h[4]) and is_each(id, following)
  if emits then void(id, following, p.f, t) end -- protection: generation
  if h[1] == 'accepted' then
    move(id, 'running', t)
    redis.call('HSET', job(id), 'started', t)
    leave_line(id, t)
    event(id, 'running', '{}', t)
  end
  if not stage(id, s, 'started') then
    set_stage(id, s, 'started', t)
    event(id, 'stage_started', '{"stage":' .. cjson.encode(stage(id, s, 'name')) .. '}', t)
  else
    touch(id, t)
  end
  return taken()
end
