UPDATE task SET state = 2, due = ?2, timeouts = timeouts + 1, redelivered = redelivered + 1 WHERE seq = ?1
