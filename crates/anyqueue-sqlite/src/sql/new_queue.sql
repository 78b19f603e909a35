INSERT INTO queue(name, created_at) VALUES (?1, ?2)
