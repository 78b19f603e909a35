DELETE FROM task WHERE seq IN (SELECT seq FROM task WHERE queue = ?1 AND state = 2 AND seq < ?2 LIMIT ?3)
