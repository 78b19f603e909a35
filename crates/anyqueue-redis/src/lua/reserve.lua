-- ARGV: how many at most; after how many bytes to stop; the first priority and the end of the range, 4 bytes each, or
-- nothing for all; the number of the claim (8 bytes). That one is random and comes from the client: a server that restarts
-- with older data must not give a number out again.
--
-- Answers with milliseconds to wait if there is nothing (-1: nothing will come by itself), else with the present, a text
-- with the counts of all (20 bytes each) if there are any, and of each task its place and itself.
local now = milliseconds()
local state = redis.call('HMGET', QUEUE, 'paused', 'bell', 'large')

local NOTHING, HEAD = string.rep('\0', 20), 34

-- Leaves word that somebody waits, and wants to be rung for what comes before `bell`.
local function wait_until(moment, bell)
  if state[2] ~= bell then
    go_on_when_full()
    redis.call('HSET', QUEUE, 'bell', bell)
  end
  moment = tonumber(moment)
  return moment == NEVER and -1 or math.max(moment - now, 0)
end

if state[1] then
  if now < tonumber(state[1]) then
    -- No task ends a pause; who does rings in any case.
    return wait_until(state[1], '0')
  end
  redis.call('HDEL', QUEUE, 'paused')
end
promote(now)

local function first(count)
  if ARGV[3] == '' then
    return redis.call('ZRANGE', READY, 0, count - 1)
  end
  return redis.call('ZRANGEBYLEX', READY, '[' .. ARGV[3], ARGV[4] == '' and '+' or '(' .. ARGV[4], 'LIMIT', 0, count)
end

local function take(places)
  if ARGV[3] == '' then
    redis.call('ZREMRANGEBYRANK', READY, 0, #places - 1)
  else
    redis.call('ZREM', READY, unpack(places))
  end
end

local most, budget = tonumber(ARGV[1]), tonumber(ARGV[2])
local places = first(most)
if #places == 0 then
  if state[3] and redis.call('HLEN', TASKS) == 0 then
    redis.call('HDEL', QUEUE, 'large')
  end
  local next = NEVER
  for _, key in ipairs({DELAYED, RESERVED}) do
    local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    next = math.min(next, tonumber(head[2] or NEVER))
  end
  next = string.format('%.0f', next)
  return wait_until(next, next)
end

local ids = {}
for i = 1, #places do
  ids[i] = string.sub(places[i], 13)
end
-- How large they are must be known before they are read: as long as none was large, as many as these fit in any case.
if state[3] or most * SMALL > budget then
  local bytes = redis.call('HSTRLEN', TASKS, ids[1])
  for i = 2, #places do
    bytes = bytes + redis.call('HSTRLEN', TASKS, ids[i])
    if bytes > budget then
      places, ids = {unpack(places, 1, i - 1)}, {unpack(ids, 1, i - 1)}
      break
    end
  end
end
take(places)

local claim = PADDING .. ARGV[5]
local tasks = redis.call('HMGET', TASKS, unpack(ids))
local counts = redis.call('EXISTS', COUNTS) == 1 and redis.call('HMGET', COUNTS, unpack(ids))
local answer, leases, ends, soonest, losses = {now, ''}, {}, {}, NEVER, {}
local taken, unpacked = 0, struct.unpack
for i = 1, #places do
  local task, at = tasks[i], places[i]
  -- A damaged one is left where only an operator finds it.
  if task and #task >= HEAD then
    local ttr = unpacked('>I4', task, 25)
    if not ends[ttr] then
      soonest = math.min(soonest, now + ttr)
      ends[ttr] = string.format('%.0f', now + ttr)
    end
    leases[2 * taken + 1], leases[2 * taken + 2] = ends[ttr], claim .. at
    answer[2 * taken + 3], answer[2 * taken + 4] = at, task
    taken = taken + 1
    if counts then
      losses[taken] = counts[i] or NOTHING
    end
  end
end
if taken > 0 then
  redis.call('ZADD', RESERVED, unpack(leases))
end
answer[2] = table.concat(losses)
-- Who waits knows nothing of these leases: it must look when the first one ends.
if state[2] and soonest < tonumber(state[2]) then
  ring(soonest)
end
return answer
