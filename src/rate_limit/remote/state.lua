-- What a client owes. Begins take.lua and settle.lua.
-- KEYS: the client's own, then those of its tiers. ARGV: one word for the script; then of each key how many quotas it
-- has, and of each of these the capacity and a step.
-- Times are whole microseconds of Redis's own clock: below 2^53, where Lua's numbers are exact.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- gcra.rs, debt. Nobody owes more than a whole burst, even where the clock went back, or a server took over whose clock
-- is behind, or the quota was cut.
local function left(moment, most)
  return math.min(math.max(moment - now, 0), most)
end

-- A value is the TAT of each quota and, while the client is blocked, until when and for how long.
local function read(key, at)
  local number = string.gmatch(redis.call('GET', key) or '', '%d+')
  local record = {key = key, ahead = false}
  for q = 1, tonumber(ARGV[at]) do
    local capacity, step = tonumber(ARGV[at + 2 * q - 1]), tonumber(ARGV[at + 2 * q])
    local tat = tonumber(number() or 0)
    record[q] = {capacity = capacity, step = step, debt = left(tat, capacity)}
    record.ahead = record.ahead or tat - now > capacity
  end
  local blocked, length = tonumber(number() or 0), tonumber(number() or 0)
  record.block, record.length = left(blocked, length), length
  record.ahead = record.ahead or blocked - now > length
  return record
end

-- The key lives as long as the debt, to the millisecond after it: a client that owes nothing takes no memory.
local function write(record)
  local words, longest = {}, record.block
  for q, quota in ipairs(record) do
    longest = math.max(longest, quota.debt)
    words[q] = string.format('%.0f', now + quota.debt)
  end
  if longest == 0 then
    redis.call('DEL', record.key)
    return
  end
  if record.block > 0 then
    words[#words + 1] = string.format('%.0f', now + record.block)
    words[#words + 1] = string.format('%.0f', record.length)
  end
  local expiry = string.format('%.0f', math.ceil((now + longest) / 1000))
  redis.call('SET', record.key, table.concat(words, ','), 'PXAT', expiry)
end

local records, at = {}, 2
for k, key in ipairs(KEYS) do
  records[k] = read(key, at)
  at = at + 1 + 2 * #records[k]
end
