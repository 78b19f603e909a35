UPDATE queue SET paused_until = ?2 WHERE id = ?1
