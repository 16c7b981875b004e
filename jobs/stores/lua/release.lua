-- Let jobs begin that were held back until their pipeline has room again.
local t, rings = now(), {}
for _, pipeline in ipairs(redis.call('SMEMBERS', 'pipelines:held')) do
  for _, one in ipairs(release(pipeline, t)) do rings[#rings + 1] = one end
end
return rings
