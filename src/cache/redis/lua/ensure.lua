-- KEYS: generations of tags. ARGV: those to create where there are none, milliseconds that they must last, milliseconds
-- that they get. Answers all of them.
local answer = {}
for at, key in ipairs(KEYS) do
  local stored = redis.call('GET', key)
  if not stored or #stored ~= 32 then
    stored = ARGV[1]
    redis.call('SET', key, stored, 'PX', ARGV[3])
  elseif redis.call('PTTL', key) < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', key, ARGV[3])
  end
  answer[at] = stored
end
return answer
