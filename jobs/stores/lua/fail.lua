-- End an attempt. ARGV: id, stage, generation, index, fence, token, cause, error JSON, delay_ms.
local id, s, g, i, fence, token, cause, error, delay_ms = unpack(ARGV)
local p, answered = held(id, s, g, i, fence, token)
if answered then return answered end
if not p then return {'lost'} end
return answer(id, s, i, token, end_attempt(id, s, g, i, p, cause, error, tonumber(delay_ms), now()))
