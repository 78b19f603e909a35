-- ARGV: '1' if the queue may be made; '1' if some are delayed; then of each task its id and what follows the stamp.
--
-- A task is `stamp rest` under its id in TASKS:
--   stamp  number of the batch (6 bytes), when it was put (6), when it was sent first (6), both in milliseconds
--   rest   its place in the batch (2), priority (4), ttr (4), delay (6), both in milliseconds, and the body
-- In the sorted sets it is `priority batch place-in-batch id`: with equal scores the order of bytes is the order of tasks.
if ARGV[1] == '0' and redis.call('EXISTS', QUEUE) == 0 then
  return redis.error_reply('NOQUEUE there is no such queue')
end
local now = milliseconds()
local number = redis.call('HINCRBY', QUEUE, 'batch', 1)
local stamp = struct.pack('>I6I6I6', number, now, now)
local batch, some_delayed = string.sub(stamp, 1, 6), ARGV[2] == '1'
local ready, delayed, first = {}, {}, nil
for i = 3, #ARGV, 2 do
  local id, rest = ARGV[i], ARGV[i + 1]
  if redis.call('HSETNX', TASKS, id, stamp .. rest) == 1 then
    local place = string.sub(rest, 3, 6) .. batch .. string.sub(rest, 1, 2) .. id
    local delay = some_delayed and struct.unpack('>I6', rest, 11) or 0
    if delay == 0 then
      ready[#ready + 1] = '0'
      ready[#ready + 1] = place
    else
      local due = now + delay
      delayed[#delayed + 1] = due
      delayed[#delayed + 1] = place
      first = math.min(first or due, due)
    end
  end
end
if #delayed > 0 then
  redis.call('ZADD', DELAYED, unpack(delayed))
end
if #ready > 0 then
  redis.call('ZADD', READY, unpack(ready))
  first = 0
end
if number == 1 then
  -- The queue is new, or the server has lost it, and who waits with it: they may listen still.
  redis.call('PUBLISH', QUEUE, '')
elseif first then
  ring(first)
end
return 0
