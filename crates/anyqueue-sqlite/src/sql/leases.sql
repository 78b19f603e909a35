SELECT tasks FROM lease WHERE queue = ?1
