-- ARGV: an id. Answers with its state, its due time if it is delayed, the present, its head and its counts; or with nothing.
local task = redis.call('HGET', TASKS, ARGV[1])
if not task then
  return false
end
local now, at, due, state = milliseconds(), place(ARGV[1], task), 0, 'reserved'
local delayed = redis.call('ZSCORE', DELAYED, at)
if redis.call('ZSCORE', READY, at) then
  state = 'ready'
elseif delayed then
  due = tonumber(delayed)
  state = due > now and 'delayed' or 'ready'
elseif redis.call('ZSCORE', HELD, at) then
  state = 'held'
end
return {state, due, now, string.sub(task, 1, 34), redis.call('HGET', COUNTS, ARGV[1]) or ''}
