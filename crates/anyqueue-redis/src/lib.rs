//! The redis broker of anyqueue.
