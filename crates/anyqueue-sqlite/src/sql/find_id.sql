SELECT seq, state, due FROM task WHERE id = ?1 AND queue = ?2
