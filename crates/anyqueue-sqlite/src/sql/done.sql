DELETE FROM task WHERE seq = ?1 AND reserves = ?2 AND state = 4 AND due > ?3
