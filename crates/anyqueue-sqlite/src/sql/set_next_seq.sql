UPDATE numbering SET next_seq = ?1
