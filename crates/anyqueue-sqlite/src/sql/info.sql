SELECT state, priority, due, sent_at, delay, ttr, reserves, timeouts, releases, holds, unholds
FROM task WHERE id = ?1 AND queue = ?2
