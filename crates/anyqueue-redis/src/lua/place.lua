-- The name of a task in the sorted sets of ready, delayed and held tasks; see the header in `send.lua`.
local function place(id, value)
  return string.sub(value, 21, 24) .. string.sub(value, 1, 6) .. string.sub(value, 19, 20) .. id
end
