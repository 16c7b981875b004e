-- Make a part of the next stage ready. ARGV: id, stage, generation, index of the emitter, fence, token, then the new
-- part's index, payload, files (by newlines), most parts.
local id, s, g, i, fence, token, index, payload, files, most = unpack(ARGV)
local p = held(id, s, g, i, fence, token)
if not p then return {'lost'} end
local following = tonumber(s) + 1
local generation = stage(id, following, 'generation') -- the fence of the living claim, which is this one
local known = part(id, following, index)
if known then return {'emitted', known.e == 1 and {ring(id, following, generation, index)} or {}} end
if count(id, following, 'total') >= tonumber(most) then return {'many'} end
local unfinished = redis.call('SCARD', under(id, following, 'open')) + redis.call('ZCARD', under(id, following, 'waiting'))
if unfinished >= 2 * tonumber(field(id, 'window')) then return {'full'} end

local t = now()
grow(id, following, 'total', 1)
redis.call('HSET', under(id, following, 'payloads'), index, payload)
local room = redis.call('SCARD', under(id, following, 'open')) < tonumber(field(id, 'window'))
local new = admit(id, following, generation, index, {f = 0, fa = 0, lo = 0, fl = files, e = room and 1 or 0}, t)
touch(id, t)
return {'emitted', {new}}
