SELECT due FROM task WHERE seq = ?1 AND state = ?2 AND reserves = ?3
