SELECT max((SELECT next_seq FROM counter), (SELECT ifnull(max(seq), 0) + 1 FROM task))
