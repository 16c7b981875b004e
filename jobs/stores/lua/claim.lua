-- Take one part. ARGV: id, stage, generation, index, worker, token, lease_ms, device.
local id, s, g, i, worker, token, lease_ms, device = unpack(ARGV)
return claim(id, s, g, i, worker, token, lease_ms, device, now())
