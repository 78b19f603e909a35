//! What the first system's clients have put on a queue runs like a task of ours.

use std::time::{Duration, SystemTime};

use anyqueue::core::{Bytes, Envelope};
use anyqueue::{QueueName, Queues, Settings, TaskId};

use crate::place::Place;

const PAYLOAD: &[u8] = br#"{"task":"test","store":"0","data":{"message":"hello"}}"#;

#[test]
fn a_payload_of_the_first_system_is_worked() {
    let place = Place::with("", "[queues.default]");
    put(&place, "default", PAYLOAD);
    place.run(&["--watch", "default", "--drain"]).ends_with(0).says("1 done").complains("hello");
    place.run(&["--watch", "default", "--drain"]).ends_with(0).says("0 done");
}

#[test]
fn a_program_gets_its_store_and_data_as_they_were() {
    let place = Place::with("[queues.QUEUE.workers.test]\nexec = [\"./work.sh\"]", "");
    place.script("work.sh", "cat > data\necho \"$ANYQUEUE_STORE $ANYQUEUE_TASK $ANYQUEUE_ATTEMPT\" > facts\n");
    put(&place, &place.queue, PAYLOAD);
    place.run(&["--watch", "--drain"]).ends_with(0).says("1 done");
    assert_eq!((place.read("data").as_str(), place.read("facts").as_str()), ("{\"message\":\"hello\"}", "0 test 1\n"));
}

#[test]
fn a_payload_that_cannot_be_read_is_held_as_it_came_and_stops_nobody() {
    let place = Place::with("[queues.QUEUE.workers.test]\nexec = [\"true\"]", "");
    put(&place, &place.queue, b"a:2:{s:4:\"task\";s:4:\"test\";}");
    put(&place, &place.queue, PAYLOAD);
    place.run(&["--watch", "--drain"]).ends_with(0).says("1 done, 1 held");
    place.run(&["held", &place.queue]).ends_with(0).says("cannot be read").says("s:4:");
}

/// Writes a body as another client would: past the facade, so that nothing is added to it.
fn put(place: &Place, queue: &str, body: &'static [u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let file = place.path("queue.toml").display().to_string();
        let settings = Settings::builder().file(file).environment([]).load().unwrap();
        let queues = Queues::connect(settings).await.unwrap();
        let name = QueueName::new(queue).unwrap();
        let task = Envelope {
            id: TaskId::new(SystemTime::now()),
            body: Bytes::from_static(body),
            priority: 1024,
            delay: Duration::ZERO,
            ttr: Duration::from_secs(60),
            group: None,
            unique: None,
            probation: false,
        };
        queues.broker(&name).await.unwrap().send(&name, &[task]).await.remove(0).unwrap();
        queues.close().await.unwrap();
    });
}
