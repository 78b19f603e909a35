SELECT seq, reserves, priority, ttr, redelivered, sent_at, body FROM task
WHERE queue = ?1 AND state = 2 AND priority BETWEEN ?2 AND ?3
ORDER BY priority, seq LIMIT ?4
