-- Tasks up to this size are small: 1,024 of them fit into one answer. Whoever writes a larger one leaves a mark with the
-- queue, and from then on claims measure before they read.
local SMALL = 8192

local function mark_if_large(rest)
  if #rest > SMALL - 18 then
    redis.call('HSET', QUEUE, 'large', '1')
  end
end
