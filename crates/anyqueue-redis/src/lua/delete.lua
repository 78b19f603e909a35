-- ARGV: ids. Answers with a text: of each '1' if it was deleted, 'b' if it is reserved, '0' if it is not there.
promote(milliseconds())
local answers = {}
for i = 1, #ARGV do
  local id = ARGV[i]
  local task = redis.call('HGET', TASKS, id)
  answers[i] = '0'
  if task then
    local at = place(id, task)
    local gone = redis.call('ZREM', READY, at) + redis.call('ZREM', DELAYED, at) + redis.call('ZREM', HELD, at)
    answers[i] = gone > 0 and '1' or 'b'
    if gone > 0 then
      redis.call('HDEL', TASKS, id)
      redis.call('HDEL', COUNTS, id)
    end
  end
end
return table.concat(answers)
