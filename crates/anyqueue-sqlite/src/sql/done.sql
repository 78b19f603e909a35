DELETE FROM task WHERE due > ?1 AND reserves = ?2 AND state = 4 AND seq IN ([?])
