-- ARGV: a state; how many at most. Answers with how many were removed.
promote(milliseconds())
local key = ({ready = READY, delayed = DELAYED, reserved = RESERVED, held = HELD})[ARGV[1]]
local at, ids = redis.call('ZRANGE', key, 0, ARGV[2] - 1), {}
if #at == 0 then
  return 0
end
for i = 1, #at do
  ids[i] = string.sub(at[i], -16)
end
redis.call('ZREMRANGEBYRANK', key, 0, #at - 1)
redis.call('HDEL', TASKS, unpack(ids))
redis.call('HDEL', COUNTS, unpack(ids))
return #at
