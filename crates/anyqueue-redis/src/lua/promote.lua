-- Tasks that one call makes ready at most: a script that runs for long stops the whole server.
local STEP = 500

local function line_up(places)
  local line = {}
  for i = 1, #places do
    line[2 * i - 1], line[2 * i] = '0', places[i]
  end
  redis.call('ZADD', READY, unpack(line))
end

-- Makes ready what is due, and takes back what was not settled in time.
local function promote(now)
  local due = redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, STEP)
  if #due > 0 then
    go_on_when_full()
    line_up(due)
    redis.call('ZREMRANGEBYRANK', DELAYED, 0, #due - 1)
  end
  local ended = redis.call('ZRANGEBYSCORE', RESERVED, '-inf', now, 'LIMIT', 0, STEP)
  if #ended > 0 then
    go_on_when_full()
    for i = 1, #ended do
      ended[i] = place_of(ended[i])
      count(string.sub(ended[i], 13), 2)
    end
    line_up(ended)
    redis.call('ZREMRANGEBYRANK', RESERVED, 0, #ended - 1)
  end
end
