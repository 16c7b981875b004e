-- Fail the jobs whose deadline has passed. ARGV: limit.
local t = now()
local ids = redis.call('ZRANGEBYSCORE', 'deadlines', '-inf', t, 'LIMIT', 0, ARGV[1])
for _, id in ipairs(ids) do
  finalize(id, 'failed', '{"code":"deadline-passed","detail":"The job was not finished by its deadline.","stage":null,"index":null}', t)
end
return ids
