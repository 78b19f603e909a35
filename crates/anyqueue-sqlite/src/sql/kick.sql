UPDATE task SET state = 2, due = ?2, unholds = unholds + 1, redelivered = 0
WHERE seq IN (SELECT seq FROM task WHERE queue = ?1 AND state = 5 AND due <= ?3 ORDER BY due, seq LIMIT ?4)
