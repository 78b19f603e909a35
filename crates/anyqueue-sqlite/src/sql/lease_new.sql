INSERT INTO lease(id, queue, due, tasks) VALUES (?1, ?2, ?3, ?4)
