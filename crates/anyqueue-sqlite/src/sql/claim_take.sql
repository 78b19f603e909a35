UPDATE task SET state = 4, due = ?2, reserves = reserves + 1 WHERE seq = ?1
