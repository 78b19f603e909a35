//! Whatever a task carries comes back as it was.

use std::time::Duration;

use anyqueue_core::{Bytes, Data, Effect, Envelope, ErrorKind};

use crate::rig::{Rig, consume, done, incoming, send, take};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

const SOON: Duration = Duration::from_secs(2);

fn every_scalar() -> String {
    (0..=char::MAX as u32).filter_map(char::from_u32).collect()
}

/// Empty data, every Unicode scalar, every byte, nested JSON, stores and bodies of foreign kinds.
pub(super) async fn data_comes_back_as_it_was(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("data").await?;
    let limit = capabilities.max_payload.unwrap_or(u64::MAX).min(1 << 20) as usize;
    let (all, bytes) = (every_scalar(), Bytes::from_iter((0..=u8::MAX).cycle().take(10_000)));
    let mut kinds = vec![
        Data::NULL,
        Data::json("")?,
        Data::Binary(Bytes::new()),
        Data::Binary(bytes),
        Data::raw_json(r#"{"deep":[[[{"n":123456789012345678901234567890.5e-300,"x":" "}]]],"deep":2}"#)?,
    ];
    let scalars: Vec<char> = all.chars().collect();
    kinds.extend(
        scalars
            .chunks((limit / 16).clamp(1, 100_000))
            .map(|part| Data::json(&part.iter().collect::<String>()))
            .collect::<Result<Vec<_>, _>>()?,
    );
    let tasks: Vec<Envelope> =
        kinds.iter().map(|data| Sample::new(0).data(data.clone()).store("\u{0}é\u{10FFFF} \"").envelope()).collect();
    send(&*broker, &queue, &tasks).await?;
    let mut consumer = consume(&*broker, &queue).await?;
    let got = take(&mut *consumer, tasks.len(), SOON).await?;
    assert_eq!(got.len(), tasks.len(), "all kinds of data arrive");
    for delivery in &got {
        let task = incoming(delivery);
        let at = tasks.iter().position(|sent| sent.id == task.id).ok_or("a task that nobody sent")?;
        assert!(delivery.raw == tasks[at].body, "kind {at}: the body was changed");
        assert!(task.wire.data == kinds[at], "kind {at}: the data was changed");
        assert_eq!(task.wire.store, "\u{0}é\u{10FFFF} \"");
    }
    done(consumer.settler().as_ref(), &got).await?;
    passed()
}

fn of_size(size: u64) -> Envelope {
    let empty = Sample::new(0).data(Data::json("").unwrap_or(Data::NULL)).envelope().body.len();
    let text = "x".repeat(size as usize - empty);
    let task = Sample::new(0).data(Data::json(&text).unwrap_or(Data::NULL)).envelope();
    assert_eq!(task.body.len() as u64, size);
    task
}

/// The largest declared body goes through; one byte more is `TooLarge`, alone in its batch, before anything is sent.
pub(super) async fn the_largest_task_and_one_byte_more(rig: &Rig) -> Outcome {
    let (broker, queue, capabilities) = rig.open("large").await?;
    let Some(limit) = capabilities.max_payload else {
        let big = of_size(8 << 20);
        send(&*broker, &queue, std::slice::from_ref(&big)).await?;
        let mut consumer = consume(&*broker, &queue).await?;
        let got = take(&mut *consumer, 1, SOON).await?;
        assert!(got.first().is_some_and(|delivery| delivery.raw == big.body), "8 MiB without a declared limit");
        return not_applicable("max_payload is none: 8 MiB went through, and no size is refused");
    };
    let tasks = [Sample::new(1).envelope(), of_size(limit + 1), of_size(limit), Sample::new(2).envelope()];
    let mut answers = broker.send(&queue, &tasks).await;
    let error = answers.remove(1).err().ok_or("one byte more than the limit was taken")?;
    assert_eq!((error.kind(), error.effect()), (ErrorKind::TooLarge { size: limit + 1, limit }, Effect::None), "{error}");
    for answer in answers {
        answer?;
    }
    let mut consumer = consume(&*broker, &queue).await?;
    let got = take(&mut *consumer, 3, rig.slack(SOON)).await?;
    assert_eq!(got.len(), 3, "the others of the batch");
    assert!(got.iter().any(|delivery| delivery.raw == tasks[2].body), "the largest task comes back whole");
    done(consumer.settler().as_ref(), &got).await?;
    passed()
}
