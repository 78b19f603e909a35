-- Adds one to a count of a task: 1 lost, 2 timeouts, 3 releases, 4 holds, 5 unholds.
local function count(id, which, forget_losses)
  local counts = {0, 0, 0, 0, 0}
  local packed = redis.call('HGET', COUNTS, id)
  if packed then
    counts = {struct.unpack('>I4I4I4I4I4', packed)}
  end
  if forget_losses then
    counts[1] = 0
  end
  counts[which] = counts[which] + 1
  if which == 2 then
    counts[1] = counts[1] + 1
  end
  redis.call('HSET', COUNTS, id, struct.pack('>I4I4I4I4I4', unpack(counts, 1, 5)))
end
