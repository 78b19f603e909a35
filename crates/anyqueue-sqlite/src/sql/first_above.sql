SELECT priority, due FROM task WHERE queue = ?1 AND state = 2 AND priority > ?2 ORDER BY priority, seq LIMIT 1
