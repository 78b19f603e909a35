-- ARGV: 'first', how many, and up to which number; or 'ids' and ids. Answers with how many were kicked and whether
-- there may be more.
local kicked, more, at = 0, 0, {}
if ARGV[1] == 'ids' then
  for i = 2, #ARGV do
    local task = redis.call('HGET', TASKS, ARGV[i])
    if task then
      at[#at + 1] = place(ARGV[i], task)
    end
  end
else
  at = redis.call('ZRANGEBYSCORE', HELD, '-inf', ARGV[3], 'LIMIT', 0, ARGV[2])
  more = #at
end
for i = 1, #at do
  if redis.call('ZREM', HELD, at[i]) == 1 then
    redis.call('ZADD', READY, '0', at[i])
    count(string.sub(at[i], 13), 5, true)
    kicked = kicked + 1
  end
end
if kicked > 0 then
  ring(0)
end
return {kicked, more}
