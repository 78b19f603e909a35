-- ARGV: a state; how many at most; after how many bytes to stop; after which number to begin, of held ones, or how many to
-- leave out, of others.
-- Answers with the present, whether there are more, and of each task its number, its place, itself and its counts.
local now, state, most = milliseconds(), ARGV[1], tonumber(ARGV[2])
local found
if state == 'ready' then
  promote(now)
  found = redis.call('ZRANGE', READY, ARGV[4], ARGV[4] + most, 'WITHSCORES')
elseif state == 'delayed' then
  found = redis.call('ZRANGEBYSCORE', DELAYED, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', ARGV[4], most + 1)
elseif state == 'reserved' then
  found = redis.call('ZRANGEBYSCORE', RESERVED, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', ARGV[4], most + 1)
else
  found = redis.call('ZRANGEBYSCORE', HELD, '(' .. ARGV[4], '+inf', 'WITHSCORES', 'LIMIT', 0, most + 1)
end
local answer, bytes, more = {}, 0, 0
for i = 1, #found, 2 do
  if i > 2 * most or (i > 1 and bytes > tonumber(ARGV[3])) then
    more = 1
    break
  end
  local at = state == 'reserved' and place_of(found[i]) or found[i]
  local id = string.sub(at, 13)
  local task = redis.call('HGET', TASKS, id)
  if task then
    bytes = bytes + #task
    answer[#answer + 1] = {found[i + 1], at, task, redis.call('HGET', COUNTS, id) or ''}
  end
end
return {now, more, answer}
