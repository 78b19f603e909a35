//! What 50 waiting consumers cost. Alone in its process, since it measures the process.

mod support;

use std::num::NonZeroUsize;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use support::{consumer, open, queue};

fn cpu() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_idle_queues_use_less_than_a_hundredth_of_a_core() {
    let folder = tempfile::tempdir().unwrap();
    let broker = open(&folder.path().join("q.db")).await;
    let mut waits = Vec::new();
    for n in 0..50 {
        let mut consumer = consumer(&*broker, &queue(&format!("q{n}"))).await;
        waits.push(tokio::spawn(async move {
            loop {
                let got = consumer.reserve(NonZeroUsize::MIN, Duration::from_secs(5)).await.unwrap();
                assert!(got.is_empty());
            }
        }));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = cpu();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let used = cpu() - before;
    waits.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(used < Duration::from_millis(50), "{used:?} of CPU in 5 s");
}
