-- Notes a change. KEYS[1]: the policy's record. ARGV[1]: the change.
local time = redis.call('TIME')
local count = redis.call('HINCRBY', KEYS[1], 'n', 1)
local millis = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('HSET', KEYS[1], count % 128, millis .. ' ' .. ARGV[1])
return count
