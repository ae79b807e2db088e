-- KEYS: generations of a URL, its record. ARGV: the new hard generation, a soft one if there is none, milliseconds at
-- least, channel, message.
local stored = redis.call('GET', KEYS[1])
local rest = ARGV[2] .. '\0'
if stored and #stored == 33 then
  rest = string.sub(stored, 17)
end
local left = math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[3]))
-- First: a Redis that is full takes no SET before something was freed.
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[1], ARGV[1] .. rest, 'PX', string.format('%.0f', left))
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1
