//! A redis-server with its append-only file on.
