-- A script may go on without room once it has written, and this writes nothing.
redis.call('HDEL', KEYS[1], '-')
