-- gcra.rs, charge: for as many of the wanted requests (ARGV[1]) as all quotas allow. With 0 it only looks, and writes
-- nothing. A step is what one request costs, at most the capacity.
-- Answers {how many, how long the client is still blocked, its debt under each quota}.
local wanted = tonumber(ARGV[1])
local granted = wanted
for _, record in ipairs(records) do
  for _, quota in ipairs(record) do
    granted = math.min(granted, math.floor((quota.capacity - quota.debt) / quota.step))
  end
end
if records[1].block > 0 then
  granted = 0
end
local answer = {granted, records[1].block}
for _, record in ipairs(records) do
  for _, quota in ipairs(record) do
    quota.debt = quota.debt + granted * quota.step
    answer[#answer + 1] = quota.debt
  end
  -- What lies too far ahead would, unless corrected now, only be paid once the clock is there again.
  if wanted > 0 and (granted > 0 or record.ahead) then
    write(record)
  end
end
return answer
