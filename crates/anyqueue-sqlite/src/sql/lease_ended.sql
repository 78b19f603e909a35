SELECT id, tasks FROM lease WHERE queue = ?1 AND due <= ?2 ORDER BY due LIMIT ?3
