-- KEYS: lease, generations of the URL. ARGV: the lease's token, `unshared` or not, channel, message.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('DEL', KEYS[1])
if ARGV[2] == 'unshared' and redis.call('STRLEN', KEYS[2]) == 33 then
  redis.call('SETRANGE', KEYS[2], 32, '\0')
end
redis.call('PUBLISH', ARGV[3], ARGV[4])
return 1
