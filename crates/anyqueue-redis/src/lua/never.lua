-- Later than all times, and still a whole number.
local NEVER = 9007199254740991
