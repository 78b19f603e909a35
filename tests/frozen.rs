//! A worker that is stopped past its lease and then goes on.

use std::time::Duration;

use rustix::process::Signal;

use crate::place::{Event, Place, until};

#[test]
fn the_second_attempts_result_stands_and_the_late_one_is_recorded_as_late() {
    let place = Place::with("ttr = 1", "[runner]\nslots = 1");
    let id = place.send("wait", "{\"n\":1}", &[]);
    let frozen = place.worker();
    let first = place.wait_for("the first attempt", |event| event.what == "began");
    assert_eq!((first.pid, &first.id), (frozen.pid(), &id));
    frozen.signal(Signal::STOP);

    let other = place.worker();
    let is_second = |event: &Event| event.what == "began" && event.pid != first.pid;
    let second = if !place.capability("frozen_bound").is_null() {
        place.wait_for("the second attempt", is_second)
    } else if let Some(second) = place.have_within(Duration::from_secs(10), is_second) {
        second
    } else {
        // Where the broker may forget the end of the lease, the task is free when the worker dies, and nothing is late then.
        frozen.kill();
        let second = place.wait_for("the second attempt", is_second);
        place.write(&format!("go-{}", second.pid), "");
        until("the task is done", || place.seems_settled().then_some(()));
        other.stop().ends_with(0).says("1 done");
        return;
    };
    assert_eq!((second.pid, &second.id), (other.pid(), &id));
    place.write(&format!("go-{}", second.pid), "");
    until("the task is done", || place.seems_settled().then_some(()));
    other.stop().ends_with(0).says("1 done");

    // Its handler may return as soon as it goes on; whatever it says counts for nothing.
    place.write(&format!("go-{}", first.pid), "");
    frozen.signal(Signal::CONT);
    frozen.complains("the lease was lost");
    let late = frozen.stop().ends_with(0);
    assert!(late.out.contains("0 done, 1 too late"), "{late:?}");
    assert!(place.seems_settled() && place.held().is_empty());
}
