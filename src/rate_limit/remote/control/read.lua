-- What is new. KEYS[1]: the policy's record. ARGV: how many changes the caller knows of, the last of them, how many
-- quotas the policy has, and how the record is to begin where there is none. Answers {1 where no change is missing, how
-- many there are, the last, Redis's time, the quotas, the changes}.
local known, last, quotas = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local count = tonumber(redis.call('HGET', KEYS[1], 'n'))
if not count then
  count = 0
  redis.call('HSET', KEYS[1], 'n', 0, '0', ARGV[4])
end
local complete = known <= count and redis.call('HGET', KEYS[1], known % 128) == last
local changes, names = {}, {}
for number = complete and known + 1 or math.max(count - 127, 1), count do
  changes[#changes + 1] = redis.call('HGET', KEYS[1], number % 128)
end
for index = 1, quotas do
  names[index] = 'q' .. index - 1
end
local time = redis.call('TIME')
local millis = time[1] * 1000 + math.floor(time[2] / 1000)
local newest = redis.call('HGET', KEYS[1], count % 128)
return {complete and 1 or 0, count, newest, millis, redis.call('HMGET', KEYS[1], unpack(names)), changes}
