-- ARGV: '1' if the queue may be made; the version of this layout. Answers with whether it was made, and its version.
local version = redis.call('HGET', QUEUE, 'layout')
if version then
  return {0, version}
end
local was_there = exists()
if not was_there and ARGV[1] == '0' then
  return redis.error_reply('NOQUEUE there is no such queue')
end
if was_there then
  go_on_when_full()
end
redis.call('HSET', QUEUE, 'layout', ARGV[2])
return {was_there and 0 or 1, ARGV[2]}
