//! What a send says of tasks that may have been sent.
#![allow(clippy::unwrap_used, reason = "a test that meets an error fails")]
#![cfg(feature = "memory")]

#[path = "support/staged.rs"]
mod staged;

use std::sync::Arc;

use anyqueue::{NewTask, TestClock};
use anyqueue_core::{Effect, Error, ErrorKind};
use anyqueue_testkit::{Scripted, Verb};
use staged::staged;

#[tokio::test(start_paused = true)]
async fn what_one_try_may_have_sent_stays_unknown_however_the_last_one_ends() {
    let scripted = Scripted::new(Arc::new(TestClock::start()));
    let queues = staged("doubtful", Some(Arc::new(scripted.clone())), TestClock::start()).await;
    let sender = queues.queue("q").unwrap();
    for many in [false, true] {
        scripted.fail_next(Verb::Send, Error::unavailable("reset").effect_unknown());
        scripted.fail_next(Verb::Send, Error::new(ErrorKind::Busy, "somebody else has it"));
        scripted.fail_next(Verb::Send, Error::new(ErrorKind::Denied, "no such user"));
        let error = match many {
            false => sender.send(NewTask::new("w", &1)).await.unwrap_err(),
            true => sender.send_all(vec![NewTask::new("w", &1)]).await.remove(0).unwrap_err(),
        };
        assert_eq!((error.kind(), error.effect()), (ErrorKind::Denied, Effect::Unknown), "{error}");
    }
    scripted.fail_next(Verb::Send, Error::new(ErrorKind::Denied, "no such user"));
    assert_eq!(sender.send(NewTask::new("w", &1)).await.unwrap_err().effect(), Effect::None);
}
