-- From here on `next_seq` may lag behind the tasks: the next number is that, or one above the highest `task.seq`, whichever
-- is higher. So a send, whose task shows its number, leaves this page alone. Whoever reserves tasks, or removes some that
-- were never reserved, writes it first. The new name stops programs that have the file open and do not know this.
ALTER TABLE counter RENAME TO numbering;
