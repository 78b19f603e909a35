UPDATE lease SET due = ?2, tasks = ?3 WHERE id = ?1
