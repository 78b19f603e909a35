-- ARGV: for how many milliseconds; -1 is until it is resumed, 0 is resume.
go_on_when_full()
local time = tonumber(ARGV[1])
if time == 0 then
  redis.call('HDEL', QUEUE, 'paused')
else
  local ends = time < 0 and NEVER or milliseconds() + time
  redis.call('HSET', QUEUE, 'paused', string.format('%.0f', ends))
end
redis.call('HDEL', QUEUE, 'bell')
redis.pcall('PUBLISH', QUEUE, '')
return 0
