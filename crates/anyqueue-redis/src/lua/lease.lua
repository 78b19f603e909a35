-- A lease is `padding claim place`. Redis keeps sets of up to 128 short names as lists that it walks for each one; a name
-- of more than 64 bytes spares it that.
local PADDING = string.rep('-', 29)

local function place_of(lease)
  return string.sub(lease, 38)
end
