CREATE TABLE queue(
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  created_at INTEGER NOT NULL
);

-- The next `task.seq` or `lease.id`. Kept apart, since a number that was used once may never come again: it is half of
-- a receipt, or remembered by a process.
CREATE TABLE counter(next_seq INTEGER NOT NULL);
INSERT INTO counter VALUES (1);

-- `state` is 2 ready, 3 delayed, 4 reserved, 5 held: from 2 on, since SQLite stores 0 and 1 without a byte, and a change
-- of state that leaves the row as long as it was is written in place. `due` is a time of day in milliseconds, always
-- six bytes: since when a task is ready or held, until when it is delayed or reserved.
CREATE TABLE task(
  seq INTEGER PRIMARY KEY,
  queue INTEGER NOT NULL,
  state INTEGER NOT NULL,
  priority INTEGER NOT NULL,
  due INTEGER NOT NULL,
  ttr INTEGER NOT NULL,
  reserves INTEGER NOT NULL DEFAULT 0,
  redelivered INTEGER NOT NULL DEFAULT 0,
  timeouts INTEGER NOT NULL DEFAULT 0,
  releases INTEGER NOT NULL DEFAULT 0,
  holds INTEGER NOT NULL DEFAULT 0,
  unholds INTEGER NOT NULL DEFAULT 0,
  delay INTEGER NOT NULL,
  sent_at INTEGER NOT NULL,
  id BLOB NOT NULL,
  body BLOB NOT NULL
);
CREATE UNIQUE INDEX task_id ON task(id, queue);
CREATE INDEX ready ON task(queue, priority) WHERE state = 2;
CREATE INDEX delayed ON task(queue, due) WHERE state = 3;
CREATE INDEX held ON task(queue, due) WHERE state = 5;

-- One row for all that one claim reserved, so that a lease costs no index entry per task. `tasks` is a list of
-- (seq, reserves), 16 bytes each; `due` is when the first of these leases ends, or earlier.
CREATE TABLE lease(
  id INTEGER PRIMARY KEY,
  queue INTEGER NOT NULL,
  due INTEGER NOT NULL,
  tasks BLOB NOT NULL
);
CREATE INDEX lease_due ON lease(queue, due);
