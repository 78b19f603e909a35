-- What to say of a lease that has ended: 'x' if its task is no longer at its place, so that somebody has settled it;
-- '0' if it only lost its lease.
local function stale(lease)
  local id = string.sub(lease, -16)
  local task = redis.call('HGET', TASKS, id)
  return task and place(id, task) == place_of(lease) and '0' or 'x'
end
