-- Where an accepted job stands in its line, and that line's last starts. ARGV: id.
local id = ARGV[1]
local status, line = field(id, 'status'), field(id, 'line')
if not status then return {'unknown'} end
local rank = redis.call('ZRANK', 'line:' .. (line or '') .. ':jobs', id)
if status ~= 'accepted' or not rank then return {'begun'} end
return {'waits', rank + 1, tostring(starts_per_s(line, now()))}
