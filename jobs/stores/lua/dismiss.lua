-- End a job that is not final. ARGV: id. Returns whether the job exists.
local id = ARGV[1]
local status = field(id, 'status')
if not status then return 0 end
if not is_final(status) then finalize(id, 'dismissed', nil, now()) end
return 1
