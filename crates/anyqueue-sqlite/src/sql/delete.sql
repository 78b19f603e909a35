DELETE FROM task WHERE seq = ?1
