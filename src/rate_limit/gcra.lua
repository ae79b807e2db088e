-- gcra.rs, line by line, in integer microseconds of Redis's own clock.
-- KEYS[1]: the client's TAT. ARGV: interval, capacity, cost. Answers {1 or 0, debt}.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local interval, capacity, cost = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local tat = tonumber(redis.call('GET', KEYS[1])) or 0
-- Redis's clock went back, or a server took over whose clock is behind: nobody owes more than a whole burst.
if tat - now > capacity then
  tat = now + capacity
  redis.call('SET', KEYS[1], string.format('%.0f', tat), 'PX', math.ceil(capacity / 1000))
end
local debt = math.max(tat - now, 0)
local owed = debt + interval * cost
if owed > capacity then
  return {0, debt}
end
-- The key lives as long as the debt: a client that owes nothing takes no memory.
redis.call('SET', KEYS[1], string.format('%.0f', now + owed), 'PX', math.ceil(owed / 1000))
return {1, owed}
