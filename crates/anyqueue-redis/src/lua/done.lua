-- ARGV: leases. Answers with 0, or where some are stale with a text of '1' for each that was there, and for the others what
-- `stale.lua` says of them.
local there = redis.call('ZMSCORE', RESERVED, unpack(ARGV))
local leases, ids, answers = {}, {}, {}
for i = 1, #ARGV do
  if there[i] then
    leases[#leases + 1] = ARGV[i]
    ids[#ids + 1] = string.sub(ARGV[i], -16)
  end
  answers[i] = there[i] and '1' or stale(ARGV[i])
end
local all = #leases == #ARGV
if #leases > 0 then
  if redis.call('ZREM', RESERVED, unpack(leases)) < #leases then
    -- One was named twice: it counts for the first.
    local seen = {}
    for i = 1, #ARGV do
      if seen[ARGV[i]] then
        answers[i], all = '0', false
      end
      seen[ARGV[i]] = true
    end
  end
  redis.call('HDEL', TASKS, unpack(ids))
  redis.call('HDEL', COUNTS, unpack(ids))
end
return all and 0 or table.concat(answers)
