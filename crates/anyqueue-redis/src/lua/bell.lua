-- Rings those who wait, unless they look by themselves before `due`.
local function ring(due)
  local armed = redis.call('HGET', QUEUE, 'bell')
  if armed and due < tonumber(armed) then
    redis.call('HDEL', QUEUE, 'bell')
    redis.pcall('PUBLISH', QUEUE, '')
  end
end
