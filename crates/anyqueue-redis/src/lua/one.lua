-- The commonest send of all, with the keys that it needs and no others: one small task that is ready at once, into a queue
-- that may be made. ARGV: its priority (4 bytes), its place in the batch and its id in one, what follows the stamp.
-- How a task lies there: see `send.lua`.
local now = milliseconds()
local number = redis.call('HINCRBY', QUEUE, 'batch', 1)
local stamp = struct.pack('>I6I6I6', number, now, now)
if redis.call('HSETNX', TASKS, string.sub(ARGV[2], 3), stamp .. ARGV[3]) == 1 then
  redis.call('ZADD', READY, '0', ARGV[1] .. string.sub(stamp, 1, 6) .. ARGV[2])
  announce(number, 0)
end
return 0
