-- KEYS: record, generations of its URL, lease.
-- ARGV: what must hold (`any`, `same`, `new`), the generations (those that must be there; for `any` and `new`: else these),
-- the rest of the value, its milliseconds, those of the generations, the lease's token or nothing, what was seen, channel,
-- message. Answers 1, or 0: outdated.
local stored = redis.call('GET', KEYS[2])
local now = stored and #stored == 33 and string.sub(stored, 1, 32)
if ARGV[1] ~= 'any' and now ~= ARGV[2] and (now or ARGV[1] ~= 'new') then
  -- Another fill of this URL was first, and no purge has come since: the tokens say so. That is no reason to drop
  -- another variant.
  local filled = ARGV[1] == 'new' and string.byte(now, 7) < 128 and string.byte(now, 23) < 128
  if not filled or redis.call('EXISTS', KEYS[1]) == 1 then
    return 0
  end
end
now = now or ARGV[2]
if ARGV[6] ~= '' then
  local lease = redis.call('GET', KEYS[3])
  if lease == ARGV[6] then
    redis.call('DEL', KEYS[3])
  else
    local seen = redis.call('GETRANGE', KEYS[1], 32, 39)
    if #seen ~= 8 then seen = string.rep('\0', 8) end
    if lease or seen ~= ARGV[7] then
      return 0
    end
  end
end
redis.call('SET', KEYS[1], now .. ARGV[3], 'PX', ARGV[4])
-- The generations outlive everything that is stored under them.
local left = math.max(redis.call('PTTL', KEYS[2]), tonumber(ARGV[5]))
redis.call('SET', KEYS[2], now .. '\1', 'PX', string.format('%.0f', left))
redis.call('PUBLISH', ARGV[8], ARGV[9])
return 1
