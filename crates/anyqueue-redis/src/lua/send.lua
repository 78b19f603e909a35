-- ARGV: '1' if the queue may be made; '1' if some are delayed; their priority (4 bytes) if all have the same; then of each
-- task its place in the batch (2 bytes) and its id in one, and what follows the stamp. No id twice.
--
-- A task is `stamp rest` under its id in TASKS:
--   stamp  number of the batch (6 bytes), when it was put (6), when it was sent first (6), both in milliseconds
--   rest   its place in the batch (2), priority (4), ttr (4), delay (6), both in milliseconds, and the body
-- In the sorted sets it is `priority batch place-in-batch id`: with equal scores the order of bytes is the order of tasks.
if ARGV[1] == '0' and not exists() then
  return redis.error_reply('NOQUEUE there is no such queue')
end
local now = milliseconds()
local number = redis.call('HINCRBY', QUEUE, 'batch', 1)
local stamp = struct.pack('>I6I6I6', number, now, now)
local batch, some_delayed = string.sub(stamp, 1, 6), ARGV[2] == '1'

local same = ARGV[3] ~= '' and ARGV[3] .. batch
local sub, unpacked = string.sub, struct.unpack

local ids = {}
for i = 4, #ARGV, 2 do
  ids[i / 2 - 1] = sub(ARGV[i], 3)
end
-- Each command costs more than its work: one that takes all is the fastest.
local known = redis.call('HMGET', TASKS, unpack(ids))
local tasks, ready, delayed, first, largest = {}, {}, {}, nil, ''
local t, r, d = 0, 0, 0
for n = 1, #ids do
  if not known[n] then
    local tail, rest = ARGV[2 * n + 2], ARGV[2 * n + 3]
    tasks[t + 1], tasks[t + 2] = ids[n], stamp .. rest
    t = t + 2
    if #rest > #largest then
      largest = rest
    end
    local at = (same or sub(rest, 3, 6) .. batch) .. tail
    local delay = some_delayed and unpacked('>I6', rest, 11) or 0
    if delay == 0 then
      ready[r + 1], ready[r + 2] = '0', at
      r = r + 2
    else
      local due = now + delay
      delayed[d + 1], delayed[d + 2] = due, at
      d = d + 2
      first = math.min(first or due, due)
    end
  end
end
if t > 0 then
  redis.call('HSET', TASKS, unpack(tasks))
  mark_if_large(largest)
end
if d > 0 then
  redis.call('ZADD', DELAYED, unpack(delayed))
end
if r > 0 then
  redis.call('ZADD', READY, unpack(ready))
  first = 0
end
if first then
  announce(number, first)
end
return 0
