-- A lone send has the first three only.
local QUEUE, READY, TASKS, DELAYED, RESERVED, HELD, COUNTS = unpack(KEYS)
