UPDATE task SET state = ?4, due = ?5, releases = releases + 1, delay = ?6
WHERE seq = ?1 AND reserves = ?2 AND state = 4 AND due > ?3
