SELECT 1 FROM task WHERE queue = ?1 AND state = 2 AND priority BETWEEN ?2 AND ?3 LIMIT 1
