UPDATE OR ROLLBACK task SET state = 4, due = ?1 + ttr, reserves = reserves + 1 WHERE seq IN ([?])
