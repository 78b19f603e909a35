-- Until when a queue is paused, in milliseconds of the time of day; none: it is not.
ALTER TABLE queue ADD COLUMN paused_until INTEGER;
