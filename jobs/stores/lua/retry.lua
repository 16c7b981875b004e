-- A new job that adopts what a failed one has done. ARGV: id, new id.
local old, id = ARGV[1], ARGV[2]
local t = now()
if redis.call('EXISTS', job(id)) == 1 then return {'replay'} end
local status = field(old, 'status')
if not status then return {'unknown'} end
if status ~= 'failed' then return {'not-failed', status} end

redis.call('COPY', job(old), job(id))
redis.call('HDEL', job(id), 'started', 'finished', 'deadline', 'error', 'event', 'version', 'key', 'opens', 'line')
redis.call('HSET', job(id), 'id', id, 'created', t, 'status', 'accepted', 'retry_of', old, 'key', '')
local h = redis.call('HMGET', job(id), 'pipeline', 'family', 'deadline_s', 'pins', 'indexes', 'n')
for _, upload in ipairs(cjson.decode(h[4])) do redis.call('SADD', 'upload:' .. upload .. ':pins', id) end
for _, index in ipairs({'jobs:all', 'jobs:status:accepted', 'jobs:pipeline:' .. h[1],
    'jobs:pipeline:' .. h[1] .. ':status:accepted', unpack(cjson.decode(h[5]))}) do
  redis.call('ZADD', index, t, id)
end
redis.call('HINCRBY', 'counts', h[1] .. '|accepted', 1)
redis.call('HSET', 'family:' .. h[2], id, '')
redis.call('ZREM', 'families', h[2])
if h[3] then
  local deadline = t + math.floor(tonumber(h[3]) * 1000)
  redis.call('HSET', job(id), 'deadline', deadline)
  redis.call('ZADD', 'deadlines', deadline, id)
end
event(id, 'accepted', '{"retry_of":' .. cjson.encode(old) .. '}', t)

-- Whole stages are adopted; the first that is not whole keeps its done parts, if it is `each` and its emitter is done.
local n = tonumber(h[6])
local function reset(s, total, closed)
  for _, name in ipairs({'done', 'dead', 'failures', 'losses', 'given_back', 'waited_ms', 'ran_ms', 'progress', 'no_worker'}) do
    set_stage(id, s, name, 0)
  end
  set_stage(id, s, 'total', total, 'closed', closed, 'generation', 0, 'device', '')
  for _, name in ipairs({'started', 'finished', 'error'}) do redis.call('HDEL', job(id), 's' .. s .. '.' .. name) end
end
local function adopt(s)
  for _, what in ipairs({'parts', 'payloads', 'outputs', 'artifacts'}) do
    redis.call('COPY', under(old, s, what), under(id, s, what))
  end
end

local opened = false
for s = 0, n - 1 do
  local whole = not opened and stage(old, s, 'finished')
    and count(old, s, 'done') >= math.ceil(tonumber(stage(old, s, 'min_success')) * count(old, s, 'total') - 1e-9)
  if whole then
    adopt(s)
    redis.call('COPY', under(old, s, 'errors'), under(id, s, 'errors'))
    for _, name in ipairs({'failures', 'losses', 'given_back'}) do set_stage(id, s, name, 0) end
  else
    local some = not opened and is_each(old, s) and stage(old, s, 'closed') == '1'
    if not opened then redis.call('HSET', job(id), 'opens', s) end
    opened = true
    if some then
      local g, done, total = stage(old, s, 'generation'), count(old, s, 'done'), count(old, s, 'total')
      reset(s, total, 1)
      set_stage(id, s, 'generation', g, 'done', done)
      adopt(s)
      for _, i in ipairs(redis.call('HKEYS', under(id, s, 'parts'))) do
        local p = part(id, s, i)
        if p.st ~= 'done' then save(id, s, i, {st = 'waiting', f = p.f, fl = p.fl, e = p.e}) end -- `open` goes on
      end
    else
      reset(s, is_each(old, s) and 0 or 1, is_each(old, s) and 0 or 1)
    end
  end
end
return {'new', enter(id, t)}
