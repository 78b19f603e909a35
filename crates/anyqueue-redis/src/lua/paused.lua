-- Answers with 0 if the queue is not paused, -1 if it is until it is resumed, else with what is left in milliseconds.
local paused = redis.call('HGET', QUEUE, 'paused')
if not paused then
  return 0
end
local ends = tonumber(paused)
return ends == NEVER and -1 or math.max(ends - milliseconds(), 0)
