-- Record a part's output and open what comes next. ARGV: id, stage, generation, index, fence, token, output,
-- emitted ('' for none), then name, JSON and event data of each artifact.
local id, s, g, i, fence, token, output, emitted = unpack(ARGV, 1, 8)
local p, answered = held(id, s, g, i, fence, token)
if answered then return answered end
if not p then return {'lost'} end
local t, following, name = now(), tonumber(s) + 1, stage(id, s, 'name')

local emits = following < tonumber(field(id, 'n')) and is_each(id, following)
local stated = tonumber(emitted) or 0
if emits and stated ~= count(id, following, 'total') then
  local detail = 'The stage said it emitted ' .. stated .. ' parts; the store has ' .. count(id, following, 'total') .. '.'
  local error = error_json('emit-mismatch', detail, name, i)
  return answer(id, s, i, token, end_attempt(id, s, g, i, p, 'bad_input', error, 0, t))
end

p.st, p.tk = 'done', nil
save(id, s, i, p)
redis.call('HSET', under(id, s, 'outputs'), i, output)
grow(id, s, 'ran_ms', t - p.ca)
local done = grow(id, s, 'done', 1)
throw_away(p.fl, t)
for n = 9, #ARGV, 3 do
  redis.call('HSET', under(id, s, 'artifacts'), ARGV[n], ARGV[n + 1])
  event(id, 'artifact', ARGV[n + 2], t)
end
if is_each(id, s) then
  event(id, 'progress', '{"stage":' .. cjson.encode(name) .. ',"index":' .. i .. ',"generation":' .. g .. ',"fence":' .. fence ..
    ',"done":' .. done .. ',"total":' .. count(id, s, 'total') .. '}', t)
end

local rings = leave(id, s, g, i, t)
local function also(more) for _, one in ipairs(more) do rings[#rings + 1] = one end end
if emits then
  set_stage(id, s, 'finished', t, 'progress', 1)
  event(id, 'stage_finished', '{"stage":' .. cjson.encode(name) .. ',"done":1,"dead":0,"total":1}', t)
  set_stage(id, following, 'closed', 1)
  also(complete_if_none_remain(id, following, t))
else
  also(complete_if_none_remain(id, s, t))
end
return answer(id, s, i, token, rings)
