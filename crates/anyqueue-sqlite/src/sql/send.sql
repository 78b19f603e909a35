INSERT INTO task(seq, queue, state, priority, due, ttr, delay, sent_at, id, body)
VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
ON CONFLICT(id, queue) DO NOTHING
