-- ARGV: of each lease itself and its TTR in milliseconds. Answers as `done.lua` does.
local now = milliseconds()
go_on_when_full()
local answers, soonest, stale = {}, NEVER, false
for i = 1, #ARGV, 2 do
  if redis.call('ZSCORE', RESERVED, ARGV[i]) then
    local ends = now + tonumber(ARGV[i + 1])
    redis.call('ZADD', RESERVED, ends, ARGV[i])
    soonest = math.min(soonest, ends)
    answers[#answers + 1] = '1'
  else
    stale = true
    answers[#answers + 1] = '0'
  end
end
ring(soonest)
return stale and table.concat(answers) or 0
