-- KEYS: record, generations of its URL, lease. ARGV: what was seen, the generations then, the lease's token, its
-- milliseconds. Answers 1: granted, 0: held by another, 2: look again, 3: the response is not for sharing.
local stored = redis.call('GET', KEYS[2])
local seen = redis.call('GETRANGE', KEYS[1], 32, 39)
if #seen ~= 8 then seen = string.rep('\0', 8) end
if seen ~= ARGV[1] or not stored or #stored ~= 33 or string.sub(stored, 1, 32) ~= ARGV[2] then
  return 2
end
-- It was marked as cacheable when it was looked up.
if string.byte(stored, 33) == 0 then
  return 3
end
if redis.call('SET', KEYS[3], ARGV[3], 'NX', 'PX', ARGV[4]) then
  return 1
end
return 0
