SELECT due FROM lease WHERE queue = ?1 ORDER BY due LIMIT 1
