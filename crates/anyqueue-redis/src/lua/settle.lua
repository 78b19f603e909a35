-- ARGV: of each item what to do, its lease, a delay in milliseconds and what follows the stamp of its next form:
-- 'back' (given back unseen), 'release' (as it is), 'retry' and 'hold' (in its next form). Answers as `done.lua` does.
local now = milliseconds()
local answers, soonest, all = {}, NEVER, true

local function put(at, delay)
  if delay == 0 then
    redis.call('ZADD', READY, '0', at)
    soonest = 0
  else
    redis.call('ZADD', DELAYED, now + delay, at)
    soonest = math.min(soonest, now + delay)
  end
end

-- Writes the next form of a task behind all others and says how it is called now.
local function rewrite(id, rest)
  local old = redis.call('HGET', TASKS, id)
  local batch = redis.call('HINCRBY', QUEUE, 'batch', 1)
  local sent = old and string.sub(old, 13, 18) or struct.pack('>I6', now)
  local value = struct.pack('>I6I6', batch, now) .. sent .. rest
  redis.call('HSET', TASKS, id, value)
  mark_if_large(rest)
  return place(id, value), batch
end

for i = 1, #ARGV, 4 do
  local what, lease, delay = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local id = string.sub(lease, -16)
  if redis.call('ZREM', RESERVED, lease) == 0 then
    all = false
    answers[#answers + 1] = stale(lease)
  else
    answers[#answers + 1] = '1'
    if what == 'back' then
      put(place_of(lease), 0)
    elseif what == 'release' then
      count(id, 3)
      put(place_of(lease), delay)
    elseif what == 'retry' then
      count(id, 3, true)
      put(rewrite(id, ARGV[i + 3]), delay)
    else
      count(id, 4, true)
      local at, number = rewrite(id, ARGV[i + 3])
      redis.call('ZADD', HELD, number, at)
    end
  end
end
ring(soonest)
return all and 0 or table.concat(answers)
