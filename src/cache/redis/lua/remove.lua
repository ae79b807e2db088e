-- KEYS: record. ARGV: channel, message, whether to tell of it also if it is not there (`always` or not). Answers how many.
local removed = redis.call('DEL', KEYS[1])
if removed == 1 or ARGV[3] == 'always' then
  redis.call('PUBLISH', ARGV[1], ARGV[2])
end
return removed
