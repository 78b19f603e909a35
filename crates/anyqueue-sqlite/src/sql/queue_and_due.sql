SELECT queue, due FROM task WHERE seq = ?1
