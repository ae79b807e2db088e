-- KEYS: lease. ARGV: its token, its milliseconds. Answers 0: it is not ours any more.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
