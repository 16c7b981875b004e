-- Lengthen one lease. ARGV: id, stage, generation, index, fence, token, lease_ms, progress ('' for none).
local id, s, g, i, fence, token, lease_ms, progress = unpack(ARGV)
local status = field(id, 'status')
if not status or is_final(status) then return 'ended' end
local p = held(id, s, g, i, fence, token)
if not p then return 'lost' end
local t = now()
redis.call('ZADD', 'leases', t + lease_ms, member(id, s, g, i))
if progress ~= '' and not is_each(id, s) and (stage(id, s, 'progress') or '0') ~= progress then
  set_stage(id, s, 'progress', progress)
  event(id, 'progress', '{"stage":' .. cjson.encode(stage(id, s, 'name')) .. ',"progress":' .. progress .. '}', t)
end
return 'held'
