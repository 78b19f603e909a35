DELETE FROM task WHERE seq = ?1 AND seq < ?2
