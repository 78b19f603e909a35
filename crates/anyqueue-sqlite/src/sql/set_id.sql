UPDATE OR IGNORE task SET id = ?2 WHERE seq = ?1
