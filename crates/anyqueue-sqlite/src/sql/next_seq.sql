SELECT max((SELECT next_seq FROM numbering), (SELECT ifnull(max(seq), 0) + 1 FROM task))
