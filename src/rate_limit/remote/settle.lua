-- gcra.rs, penalise and refund: adds its step to each debt, which stays between nothing and the capacity. Where ARGV[1] is a number, the client is
-- blocked for that long from now on, instead of any earlier block.
local block = tonumber(ARGV[1])
if block then
  records[1].block, records[1].length = block, block
end
for _, record in ipairs(records) do
  for _, quota in ipairs(record) do
    quota.debt = math.min(math.max(quota.debt + quota.step, 0), quota.capacity)
  end
  write(record)
end
