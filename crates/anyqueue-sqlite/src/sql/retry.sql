UPDATE task SET seq = ?4, state = ?5, due = ?6, delay = ?7, priority = ?8, ttr = ?9, body = ?10,
  releases = releases + 1, redelivered = 0
WHERE seq = ?1 AND reserves = ?2 AND state = 4 AND due > ?3
