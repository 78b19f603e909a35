-- Answers with ready, delayed, reserved and held tasks, and for how many milliseconds the oldest ready one has been so.
-- The oldest of a priority is its first; of more than 16 priorities only the most urgent ones are looked at.
local now = milliseconds()
local due = redis.call('ZCOUNT', DELAYED, '-inf', now)
local ended = redis.call('ZCOUNT', RESERVED, '-inf', now)
local oldest, from = now, '-'
local function ready_since(place)
  local task = redis.call('HGET', TASKS, string.sub(place, 13))
  if task then
    local put, delay = struct.unpack('>I6', task, 7), struct.unpack('>I6', task, 29)
    oldest = math.min(oldest, put + delay)
  end
end
for _ = 1, 16 do
  local head = redis.call('ZRANGEBYLEX', READY, from, '+', 'LIMIT', 0, 1)[1]
  if not head then
    break
  end
  ready_since(head)
  local priority = struct.unpack('>I4', head)
  if priority == 4294967295 then
    break
  end
  from = '[' .. struct.pack('>I4', priority + 1)
end
if due > 0 then
  ready_since(redis.call('ZRANGE', DELAYED, 0, 0)[1])
end
return {
  redis.call('ZCARD', READY) + due + ended, redis.call('ZCARD', DELAYED) - due, redis.call('ZCARD', RESERVED) - ended,
  redis.call('ZCARD', HELD), now - oldest,
}
