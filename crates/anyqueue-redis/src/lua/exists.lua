-- Whether the queue is there. Marks of those who wait for it, and a pause, make none.
local function exists()
  local signs = redis.call('HMGET', QUEUE, 'layout', 'batch')
  return signs[1] or signs[2]
end
