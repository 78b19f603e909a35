SELECT paused_until FROM queue WHERE id = ?1
