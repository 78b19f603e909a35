UPDATE task SET state = 2, due = ?3, unholds = unholds + 1, redelivered = 0 WHERE id = ?1 AND queue = ?2 AND state = 5
