SELECT id = ?3 FROM task WHERE seq = ?1 AND reserves = ?2 AND state = 4
