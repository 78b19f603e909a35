INSERT OR ROLLBACK INTO task(sent_at, due, state, delay, seq, queue, priority, ttr, id, body)
VALUES [(?1, ?1, 2, 0, ?, ?, ?, ?, ?, ?)]
ON CONFLICT(id, queue) DO NOTHING
