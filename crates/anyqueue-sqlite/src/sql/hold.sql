UPDATE task SET state = 5, due = ?3, priority = ?4, ttr = ?5, body = ?6, holds = holds + 1, redelivered = 0
WHERE seq = ?1 AND reserves = ?2 AND state = 4 AND due > ?3
