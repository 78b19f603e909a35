SELECT min(due) FROM task INDEXED BY ready WHERE queue = ?1 AND state = 2
