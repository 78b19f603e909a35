//! Whatever a server sends is read or refused: `cargo +nightly fuzz run replies` in `crates/anyqueue-beanstalkd`.

#![no_main]

use anyqueue_beanstalkd::wire::{JobStats, Reply, Yaml, decode};
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (piece, bytes) = input;
    let mut buffer = BytesMut::new();
    for part in bytes.chunks(usize::from(piece).max(1)) {
        buffer.extend_from_slice(part);
        loop {
            match decode(&mut buffer) {
                Ok(Some(Reply::Ok(body))) => {
                    let _ = JobStats::read(&body);
                    Yaml::new(&body).items().count();
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
