UPDATE task SET state = 2, due = ?3 WHERE seq = ?1 AND reserves = ?2 AND state = 4
