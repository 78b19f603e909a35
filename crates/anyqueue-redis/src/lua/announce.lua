-- Rings for a batch of tasks of which the first is due at `due`.
local function announce(number, due)
  if number == 1 then
    -- The queue is new, or the server has lost it, and who waits with it: they may listen still.
    redis.pcall('PUBLISH', QUEUE, '')
  else
    ring(due)
  end
end
