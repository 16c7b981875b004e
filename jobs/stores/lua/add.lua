-- Accept one job: its record, first part, pins and key.
-- ARGV: id, key ('' for none), digest, key_ttl_ms, deadline_ms ('' for none), pins JSON, label indexes JSON, most waiting ('' for any),
-- field, value ...
local id, key, digest, key_ttl, deadline, pins, indexes, most = unpack(ARGV, 1, 8)
local t = now()
if redis.call('EXISTS', job(id)) == 1 then return {'replay', id} end
if key ~= '' then
  local known = redis.call('HMGET', key, 'job', 'digest')
  if known[1] then return {known[2] == digest and 'replay' or 'reused', known[1]} end
end
local files = cjson.decode(pins)
for _, upload in ipairs(files) do
  if redis.call('EXISTS', 'upload:' .. upload) == 0 then return {'unknown', upload} end
end
if most ~= '' and redis.call('ZCARD', 'jobs:status:accepted') >= tonumber(most) then
  return {'full', redis.call('ZCARD', 'jobs:status:accepted')}
end

redis.call('HSET', job(id), unpack(ARGV, 9))
redis.call('HSET', job(id), 'created', t, 'key', key, 'pins', pins, 'indexes', indexes)
if key ~= '' then
  redis.call('HSET', key, 'job', id, 'digest', digest)
  redis.call('PEXPIRE', key, key_ttl)
end
for _, upload in ipairs(files) do redis.call('SADD', 'upload:' .. upload .. ':pins', id) end
local pipeline = field(id, 'pipeline')
for _, index in ipairs({'jobs:all', 'jobs:status:accepted', 'jobs:pipeline:' .. pipeline,
    'jobs:pipeline:' .. pipeline .. ':status:accepted', unpack(cjson.decode(indexes))}) do
  redis.call('ZADD', index, t, id)
end
redis.call('HINCRBY', 'counts', pipeline .. '|accepted', 1)
redis.call('HSET', 'family:' .. field(id, 'family'), id, '')
if deadline ~= '' then
  redis.call('HSET', job(id), 'deadline', t + deadline)
  redis.call('ZADD', 'deadlines', t + deadline, id)
end
event(id, 'accepted', '{}', t)
return {'new', id, t, enter(id, t)}
