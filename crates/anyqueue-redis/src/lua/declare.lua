-- ARGV: '1' if the queue may be made; the version of this layout. Answers with whether it was made, and its version.
local version = redis.call('HGET', QUEUE, 'layout')
if version then
  return {0, version}
end
if redis.call('EXISTS', QUEUE) == 0 and ARGV[1] == '0' then
  return redis.error_reply('NOQUEUE there is no such queue')
end
local made = 1 - redis.call('EXISTS', QUEUE)
redis.call('HSET', QUEUE, 'layout', ARGV[2])
return {made, ARGV[2]}
