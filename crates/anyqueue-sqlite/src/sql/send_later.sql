INSERT INTO task(sent_at, due, state, delay, seq, queue, priority, ttr, id, body)
VALUES (?1, ?1 + ?2, 3, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
ON CONFLICT(id, queue) DO NOTHING
