SELECT due FROM task WHERE queue = ?1 AND state = 3 ORDER BY due LIMIT 1
