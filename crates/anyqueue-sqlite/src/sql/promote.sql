UPDATE task SET state = 2 WHERE seq IN (SELECT seq FROM task WHERE queue = ?1 AND state = 3 AND due <= ?2 ORDER BY due LIMIT ?3)
