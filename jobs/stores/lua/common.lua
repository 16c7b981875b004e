-- What the transitions share; put before each script. `t` is the store's time in ms, `id` a job, `s` a stage's number,
-- `g` a generation, `i` an index. A part's record: st (waiting | ready | later | leased | done | dead), f fence, tk token,
-- ra ready at, ca claimed at, nb not before, fa failures, lo losses, r repeated rings, fl files; lt, ls, la: the last token that ended it, with the status and rings that were answered.
-- A line that ends in `-- protection: NAME` is left out when the fault battery does without NAME.

local UNCONFIRMED_MS, FALLBACK_MS, FALLBACK_MAX_MS, BACK_OFF_MAX_MS = 2000, 60000, 3600000, 300000

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function job(id) return 'job:' .. id end
local function under(id, s, what) return 'job:' .. id .. ':s' .. s .. ':' .. what end
local function field(id, name) return redis.call('HGET', job(id), name) end
local function stage(id, s, name) return redis.call('HGET', job(id), 's' .. s .. '.' .. name) end
local function count(id, s, name) return tonumber(stage(id, s, name) or 0) end
local function set_stage(id, s, ...)
  local pairs_ = {...}
  for n = 1, #pairs_, 2 do redis.call('HSET', job(id), 's' .. s .. '.' .. pairs_[n], pairs_[n + 1]) end
end
local function grow(id, s, name, by) return redis.call('HINCRBY', job(id), 's' .. s .. '.' .. name, by) end
local function is_each(id, s) return stage(id, s, 'each') == '1' end
local function is_final(status) return status == 'successful' or status == 'failed' or status == 'dismissed' end

local function member(id, s, g, i) return id .. '|' .. s .. '|' .. g .. '|' .. i end
local function parse(key) return string.match(key, '^(.*)|(%d+)|(%d+)|(%d+)$') end

local function part(id, s, i)
  local found = redis.call('HGET', under(id, s, 'parts'), i)
  return found and cjson.decode(found)
end
local function save(id, s, i, p) redis.call('HSET', under(id, s, 'parts'), i, cjson.encode(p)) end

-- Files of a payload whose consumer is done, or void.
local function throw_away(files, t)
  for file in string.gmatch(files or '', '[^\n]+') do redis.call('ZADD', 'trash', t, file) end
end

local function touch(id, t)
  redis.call('HINCRBY', job(id), 'version', 1)
  redis.call('HSET', job(id), 'updated', t)
end

-- Watchers hear once a script that a job changed, and once that it ended.
local told = {}
local function tell(id, mark)
  if not told[mark .. id] then redis.call('PUBLISH', 'jobs', mark .. id) end
  told[mark .. id] = true
end

local function event(id, kind, data, t)
  local n = redis.call('HINCRBY', job(id), 'event', 1)
  redis.call('XADD', job(id) .. ':events', n .. '-0', 'type', kind, 'time', t, 'data', data)
  touch(id, t)
  tell(id, is_final(kind) and '!' or '+')
end

local function error_json(code, detail, name, i)
  return '{"code":"' .. code .. '","detail":"' .. detail .. '","stage":' .. cjson.encode(name) .. ',"index":' .. i .. '}'
end

-- A ring as it is returned: job, stage, generation, index, task, queue, priority.
local function ring(id, s, g, i)
  local h = redis.call('HMGET', job(id), 'pipeline', 'priority', 's' .. s .. '.name', 's' .. s .. '.queue')
  return {id, tostring(s), tostring(g), tostring(i), h[1] .. '.' .. h[3], h[4], h[2]}
end

local function unring(id, s, g, i)
  local h, key = redis.call('HMGET', job(id), 'pipeline', 's' .. s .. '.name', 's' .. s .. '.queue'), member(id, s, g, i)
  redis.call('ZREM', 'queue:' .. h[3] .. ':unrung', key)
  redis.call('ZREM', 'queue:' .. h[3] .. ':rung', key)
  redis.call('ZREM', 'task:' .. h[1] .. '.' .. h[2] .. ':ready', key)
  redis.call('ZREM', 'due', key)
  redis.call('ZREM', 'leases', key)
end

-- A ready part stands under its task too, by when it became ready: so the oldest of each can be told.
local function stand(task, key, p)
  redis.call('SADD', 'tasks', task)
  redis.call('ZADD', 'task:' .. task .. ':ready', p.ra, key)
end

-- A part inside the window can be claimed from now on; its ring is owed.
local function ready(id, s, g, i, p, t)
  local owed, key = ring(id, s, g, i), member(id, s, g, i)
  local task, queue = owed[5], owed[6]
  p.st, p.ra, p.r, p.tk, p.nb = 'ready', t, nil, nil, nil
  save(id, s, i, p)
  redis.call('SADD', under(id, s, 'open'), i)
  redis.call('SADD', 'queues', queue)
  redis.call('ZADD', 'queue:' .. queue .. ':unrung', t + UNCONFIRMED_MS, key)
  stand(task, key, p)
  return owed
end

-- A new part: ready if the window has room, else waiting for its turn. Returns its ring, or nil.
local function admit(id, s, g, i, p, t)
  if is_each(id, s) and redis.call('SCARD', under(id, s, 'open')) >= tonumber(field(id, 'window')) then
    p.st, p.ra = 'waiting', t
    save(id, s, i, p)
    redis.call('ZADD', under(id, s, 'waiting'), i, i)
    return nil
  end
  return ready(id, s, g, i, p, t)
end

-- A part is over: the next waiting one takes its place in the window. Returns the rings that are due.
local function leave(id, s, g, i, t)
  local rings = {}
  unring(id, s, g, i)
  redis.call('SREM', under(id, s, 'open'), i)
  local following = redis.call('ZPOPMIN', under(id, s, 'waiting'))
  if following[1] then
    rings[1] = ready(id, s, g, following[1], part(id, s, following[1]), t)
  end
  return rings
end

-- Jobs that wait to be started stand in a line, of their queue or of their limited pipeline: `jobs` those that are
-- accepted, `starts` the last ones that began. Of a limited pipeline `held` are held back, `let_in` have a place.
local LINE_STARTS, LINE_MS, MINUTE_MS = 1000, 300000, 60000
local function limits(id)
  local h = redis.call('HMGET', job(id), 'rate', 'concurrency', 'pipeline')
  return tonumber(h[1]), tonumber(h[2]), 'pipeline:' .. h[3]
end

-- Open a job's first stage that has something to do: its one part, or what a retry did not adopt of an `each` stage.
local function open(id, t)
  local s, rings = field(id, 'opens') or '0', {}
  if not is_each(id, s) then return {admit(id, s, 0, 0, {f = 0, fa = 0, lo = 0}, t)} end
  local again, g = {}, stage(id, s, 'generation')
  for _, i in ipairs(redis.call('HKEYS', under(id, s, 'parts'))) do -- indexes may have gaps
    local p = part(id, s, i)
    if p.st ~= 'done' then again[#again + 1] = {i, p} end
  end
  table.sort(again, function(a, b) return tonumber(a[1]) < tonumber(b[1]) end)
  for _, one in ipairs(again) do
    local p = one[2]
    rings[#rings + 1] = admit(id, s, g, one[1], {f = p.f, fa = 0, lo = 0, fl = p.fl, e = p.e}, t)
  end
  return rings
end

-- Let jobs of a limited pipeline begin, first come first, as far as there is room. Returns rings.
local function release(pipeline, t)
  local rings = {}
  while #rings < 100 do
    local id = redis.call('ZRANGE', pipeline .. ':held', 0, 0)[1]
    if not id then
      redis.call('SREM', 'pipelines:held', pipeline)
      break
    end
    local rate, most = limits(id)
    if most and redis.call('SCARD', pipeline .. ':let_in') >= most then break end
    if rate and redis.call('ZCOUNT', 'line:' .. pipeline .. ':starts', '(' .. t - MINUTE_MS, '+inf')
      + redis.call('SCARD', pipeline .. ':unstarted') >= rate then break end
    redis.call('ZREM', pipeline .. ':held', id)
    redis.call('SADD', pipeline .. ':let_in', id)
    redis.call('SADD', pipeline .. ':unstarted', id)
    for _, one in ipairs(open(id, t)) do rings[#rings + 1] = one end
  end
  return rings
end

-- A job that was just accepted takes its place; its first stage opens now, or once its pipeline has room.
local function enter(id, t)
  local rate, most, pipeline = limits(id)
  local line = (rate or most) and pipeline or 'queue:' .. stage(id, field(id, 'opens') or '0', 'queue')
  local place = (9 - field(id, 'priority')) * 1e13 + t
  redis.call('HSET', job(id), 'line', line)
  redis.call('SADD', 'lines', line)
  redis.call('ZADD', 'line:' .. line .. ':jobs', place, id)
  if not (rate or most) then return open(id, t) end
  redis.call('ZADD', pipeline .. ':held', place, id)
  redis.call('SADD', 'pipelines:held', pipeline)
  return release(pipeline, t)
end

-- How many jobs of a line start a second: as its last starts say, of five minutes at most and ten seconds at least.
local function starts_per_s(line, t)
  local starts = 'line:' .. line .. ':starts'
  redis.call('ZREMRANGEBYSCORE', starts, '-inf', t - LINE_MS)
  local oldest, n = redis.call('ZRANGE', starts, 0, 0, 'WITHSCORES')[2], redis.call('ZCARD', starts)
  if n == 0 then return 0 end
  local ms = math.max(t - oldest, n < LINE_STARTS and 10000 or 1)
  return n * 1000 / ms
end

-- A job begins: it waits no longer.
local function leave_line(id, t)
  local line = field(id, 'line')
  if not line then return end -- accepted by an older version
  redis.call('ZREM', 'line:' .. line .. ':jobs', id)
  local starts = 'line:' .. line .. ':starts'
  redis.call('ZADD', starts, t, id)
  redis.call('ZREMRANGEBYRANK', starts, 0, -LINE_STARTS - 1)
  redis.call('PEXPIRE', starts, LINE_MS)
  local rate, most, pipeline = limits(id)
  if rate or most then redis.call('SREM', pipeline .. ':unstarted', id) end
end

-- A job has ended: the next ones of its pipeline take its place. Returns rings.
local function make_room(id, t)
  redis.call('ZREM', 'line:' .. (field(id, 'line') or '') .. ':jobs', id)
  local rate, most, pipeline = limits(id)
  if not (rate or most) then return {} end
  for _, what in ipairs({':let_in', ':unstarted'}) do redis.call('SREM', pipeline .. what, id) end
  redis.call('ZREM', pipeline .. ':held', id)
  return release(pipeline, t)
end

local function move(id, status, t)
  local h = redis.call('HMGET', job(id), 'status', 'pipeline', 'created')
  redis.call('HSET', job(id), 'status', status)
  for _, index in ipairs({'jobs:status:', 'jobs:pipeline:' .. h[2] .. ':status:'}) do
    redis.call('ZREM', index .. h[1], id)
    redis.call('ZADD', index .. status, h[3], id)
  end
  redis.call('HINCRBY', 'counts', h[2] .. '|' .. h[1], -1)
  redis.call('HINCRBY', 'counts', h[2] .. '|' .. status, 1)
end

-- The job's last move. Its parts leave every list at once; `error` is JSON or nil. Returns rings of others.
local function finalize(id, status, error, t)
  for s = 0, tonumber(field(id, 'n')) - 1 do
    local g = stage(id, s, 'generation')
    for _, i in ipairs(redis.call('SMEMBERS', under(id, s, 'open'))) do unring(id, s, g, i) end
    redis.call('UNLINK', under(id, s, 'open'), under(id, s, 'waiting'))
  end
  move(id, status, t)
  redis.call('HSET', job(id), 'finished', t)
  if error then redis.call('HSET', job(id), 'error', error) end
  redis.call('ZREM', 'deadlines', id)
  local h = redis.call('HMGET', job(id), 'family', 'ttl_ms')
  local family = 'family:' .. h[1]
  redis.call('HSET', family, id, t)
  local living = false
  for _, finished in ipairs(redis.call('HVALS', family)) do living = living or finished == '' end
  if not living then redis.call('ZADD', 'families', t + h[2], h[1]) end
  event(id, status, error or '{}', t)
  return make_room(id, t)
end

-- A stage is closed and none of its parts remain: open the next one, or end the job. Returns rings.
local function complete(id, s, t)
  local done, dead, total = count(id, s, 'done'), count(id, s, 'dead'), count(id, s, 'total')
  set_stage(id, s, 'finished', t, 'progress', 1)
  event(id, 'stage_finished', '{"stage":' .. cjson.encode(stage(id, s, 'name')) .. ',"done":' .. done .. ',"dead":' .. dead ..
    ',"total":' .. total .. '}', t)
  if done < math.ceil(tonumber(stage(id, s, 'min_success')) * total - 1e-9) then
    return finalize(id, 'failed', stage(id, s, 'error'), t)
  end
  s = s + 1
  if s == tonumber(field(id, 'n')) then return finalize(id, 'successful', nil, t) end
  return {admit(id, s, 0, 0, {f = 0, fa = 0, lo = 0}, t)}
end

local function complete_if_none_remain(id, s, t)
  if stage(id, s, 'closed') == '1' and count(id, s, 'done') + count(id, s, 'dead') == count(id, s, 'total') then
    return complete(id, s, t)
  end
  return {}
end

-- The part, if that claim holds it; else the answer it was given when it ended the part; else nothing.
local function held(id, s, g, i, fence, token)
  local status = field(id, 'status')
  if not status or stage(id, s, 'generation') ~= g then return nil, nil end
  local p = part(id, s, i)
  if not p then return nil, nil end
  if p.lt == token then return nil, {p.ls, cjson.decode(p.la)} end -- protection: token
  if is_final(status) then return nil, nil end -- protection: final
  if p.st ~= 'leased' or p.tk ~= token or p.f ~= tonumber(fence) then return nil, nil end -- protection: fence
  return p, nil
end

-- Keep the answer with the part, so that a repeated command gets the first one.
local function answer(id, s, i, token, rings)
  local p, status = part(id, s, i), field(id, 'status')
  p.lt, p.ls, p.la = token, status, cjson.encode(rings)
  save(id, s, i, p)
  return {status, rings}
end

-- End an attempt without an output. `error` is the JSON of a JobError. Returns rings.
local function end_attempt(id, s, g, i, p, cause, error, delay_ms, t)
  local name, each = stage(id, s, 'name'), is_each(id, s)
  local counter = ({failure = 'failures', loss = 'losses', given_back = 'given_back'})[cause]
  if counter then grow(id, s, counter, 1) end
  grow(id, s, 'ran_ms', t - p.ca)
  event(id, 'attempt_failed', '{"cause":"' .. cause .. '","fence":' .. p.f .. ',' .. string.sub(error, 2), t)
  if cause == 'failure' then p.fa = p.fa + 1 elseif cause == 'loss' then p.lo = p.lo + 1 end
  local dead = cause == 'bad_input' or (cause == 'failure' and p.fa >= tonumber(field(id, 'max_failures')))
    or (cause == 'loss' and p.lo >= tonumber(field(id, 'max_losses')))
  unring(id, s, g, i)
  if not dead then
    if delay_ms <= 0 then return {ready(id, s, g, i, p, t)} end
    p.st, p.tk, p.nb, p.ra = 'later', nil, t + delay_ms, t + delay_ms
    save(id, s, i, p)
    redis.call('ZADD', 'due', p.nb, member(id, s, g, i))
    return {}
  end
  p.st, p.tk = 'dead', nil
  save(id, s, i, p)
  grow(id, s, 'dead', 1)
  set_stage(id, s, 'error', error)
  redis.call('HSET', under(id, s, 'errors'), i, error)
  if cause ~= 'bad_input' then redis.call('ZADD', 'dead', t, member(id, s, g, i)) end
  if not each or tonumber(stage(id, s, 'min_success')) >= 1 then return finalize(id, 'failed', error, t) end
  local rings = leave(id, s, g, i, t)
  for _, one in ipairs(complete_if_none_remain(id, s, t)) do rings[#rings + 1] = one end
  return rings
end

-- Forget a record: its keys, its places in lists, its pins.
local function forget(id, t)
  local h = redis.call('HMGET', job(id), 'status', 'pipeline', 'indexes', 'pins', 'key', 'n')
  if not h[1] then return end
  for _, index in ipairs({'jobs:all', 'jobs:status:' .. h[1], 'jobs:pipeline:' .. h[2],
      'jobs:pipeline:' .. h[2] .. ':status:' .. h[1], unpack(cjson.decode(h[3]))}) do
    redis.call('ZREM', index, id)
  end
  redis.call('HINCRBY', 'counts', h[2] .. '|' .. h[1], -1)
  for _, upload in ipairs(cjson.decode(h[4])) do
    redis.call('SREM', 'upload:' .. upload .. ':pins', id)
    if redis.call('SCARD', 'upload:' .. upload .. ':pins') == 0 then
      local expires = tonumber(redis.call('HGET', 'upload:' .. upload, 'expires') or t)
      redis.call('ZADD', 'uploads', math.max(expires, t), upload)
    end
  end
  if h[5] ~= '' and redis.call('HGET', h[5], 'job') == id then redis.call('UNLINK', h[5]) end
  for s = 0, tonumber(h[6]) - 1 do
    for _, i in ipairs(redis.call('HKEYS', under(id, s, 'errors'))) do
      redis.call('ZREM', 'dead', member(id, s, stage(id, s, 'generation'), i))
    end
    for _, what in ipairs({'parts', 'payloads', 'outputs', 'errors', 'artifacts', 'open', 'waiting'}) do
      redis.call('UNLINK', under(id, s, what))
    end
  end
  redis.call('UNLINK', job(id), job(id) .. ':events', job(id) .. ':log')
end

-- Rings for keys of a queue's list; keys whose part is not ready any more are dropped from it.
local function rings_of(list, keys, score)
  local rings = {}
  for _, key in ipairs(keys) do
    local id, s, g, i = parse(key)
    local p = stage(id, s, 'generation') == g and part(id, s, i)
    if p and p.st == 'ready' then
      redis.call('ZADD', list, score(id, s, i, p), key)
      rings[#rings + 1] = ring(id, s, g, i)
      stand(rings[#rings][5], key, p) -- an older version made it ready, and does not know these lists
    else
      redis.call('ZREM', list, key)
    end
  end
  return rings
end

-- When the next fallback ring of a rung part is due, after one more.
local function doubled(t)
  return function(id, s, i, p)
    p.r = (p.r or 0) + 1
    save(id, s, i, p)
    return t + math.min(FALLBACK_MS * 2 ^ p.r, FALLBACK_MAX_MS)
  end
end
