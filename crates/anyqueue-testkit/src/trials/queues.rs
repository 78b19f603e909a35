//! C18, C19: queues, options, secrets.

use std::time::Duration;

use anyqueue_core::{Create, ErrorKind, QueueName, chain};

use crate::rig::{Rig, consume, drain, send};
use crate::run::{Outcome, not_applicable, passed};
use crate::sample::Sample;

const QUIET: Duration = Duration::from_millis(300);

/// Declaring again changes nothing: tasks stay, nothing is created, nothing has drifted.
pub(super) async fn c18_declare_twice(rig: &Rig) -> Outcome {
    let broker = rig.connect().await?;
    let queue = rig.queue("declare");
    broker.declare(&queue).await?;
    send(&*broker, &queue, &Sample::many(3)).await?;
    let again = broker.declare(&queue).await?;
    assert!(!again.created && again.drift.is_empty(), "a second declare: {again:?}");
    let other = rig.connect().await?.declare(&queue).await?;
    assert!(!other.created && other.drift.is_empty(), "another client's declare: {other:?}");
    let mut consumer = consume(&*broker, &queue).await?;
    assert_eq!(drain(&mut *consumer, QUIET).await?.len(), 3);
    passed()
}

/// Under `create = "never"` an existing queue works and a missing one is an error that names `queue-runner init`.
pub(super) async fn c18_create_never(rig: &Rig) -> Outcome {
    let (broker, queue, _) = rig.open("never").await?;
    let careful = rig.connect_with(&rig.stage.url, Create::Never).await?;
    careful.declare(&queue).await?;
    send(&*careful, &queue, &Sample::many(1)).await?;
    let mut consumer = consume(&*careful, &queue).await?;
    assert_eq!(drain(&mut *consumer, QUIET).await?, [0]);
    let missing = rig.queue("missing");
    let error = careful.declare(&missing).await.err().ok_or("a missing queue was declared under create = never")?;
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(chain(&error).contains("queue-runner init") && chain(&error).contains(missing.as_str()), "{}", chain(&error));
    let answer = careful.send(&missing, &Sample::many(1)).await.remove(0);
    assert!(answer.is_err_and(|e| e.kind() == ErrorKind::NotFound), "a task was sent to a missing queue");
    let declared = broker.declare(&missing).await?;
    assert!(declared.drift.is_empty());
    careful.declare(&missing).await?;
    passed()
}

/// Names that differ only in case or in a dot, and the longest names, are queues of their own.
pub(super) async fn c18_names_do_not_meet(rig: &Rig) -> Outcome {
    let (broker, stem, capabilities) = rig.open("n").await?;
    let longest = capabilities.max_queue_name.unwrap_or(QueueName::MAX);
    let full = |end: &str| QueueName::new(format!("{stem}{}{end}", "x".repeat(longest - stem.as_str().len() - end.len())));
    let mut names = vec![full("1")?, full("2")?];
    for end in ["a", "A", "a.b", "a-b", "a_b", "a.held", "a-held", "a.delayed", "a.p0"] {
        names.push(QueueName::new(format!("{stem}{end}"))?);
    }
    for (number, queue) in names.iter().enumerate() {
        broker.declare(queue).await?;
        send(&*broker, queue, &[Sample::new(number as u64).envelope()]).await?;
    }
    for (number, queue) in names.iter().enumerate() {
        let mut consumer = consume(&*broker, queue).await?;
        assert_eq!(drain(&mut *consumer, QUIET).await?, [number as u64], "queue {queue}");
    }
    if let Some(limit) = capabilities.max_queue_name.filter(|limit| *limit < QueueName::MAX) {
        let long = QueueName::new("x".repeat(limit + 1))?;
        let error = broker.declare(&long).await.err().ok_or("a name above the declared limit was taken")?;
        assert!(chain(&error).contains(&limit.to_string()), "the limit is named: {error}");
    }
    passed()
}

/// An option that the driver does not know is refused with the nearest known one.
pub(super) async fn c18_an_unknown_option_is_refused(rig: &Rig) -> Outcome {
    let mut options = rig.options(&rig.stage.url, Create::Auto)?;
    let known = rig.driver.options.first().map(|spec| spec.key);
    let typed = known.map_or("no_such_option".to_owned(), |key| format!("{key}x"));
    options.options.set(typed.clone(), "1");
    let error = rig.driver.open(options).await.err().ok_or("an unknown option was ignored")?;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(
        error.to_string().contains(&typed) && known.is_none_or(|key| error.to_string().contains(&format!("`{key}`"))),
        "{error}"
    );
    passed()
}

/// The password of a URL is in no Debug, no info and no error.
pub(super) async fn c19_no_password_is_shown(rig: &Rig) -> Outcome {
    let Some((url, password)) = &rig.stage.secret else {
        let broker = rig.connect().await?;
        assert!(!broker.info().address.contains('@') && !broker.info().address.contains('?'), "{}", broker.info().address);
        return not_applicable("the scheme has no password: the address shown has no login and no query either");
    };
    let options = rig.options(url, Create::Auto)?;
    let mut shown = format!("{options:?} {}", options.url);
    match rig.driver.open(options).await {
        Ok(broker) => {
            shown.push_str(&format!("{broker:?} {:?} {:?}", broker.info(), broker.diagnose().await));
            let consumer = consume(&*broker, &rig.queue("secret")).await;
            shown.push_str(&format!("{consumer:?}"));
        }
        Err(e) => shown.push_str(&format!("{e} {e:?} {}", chain(&e))),
    }
    assert!(!shown.contains(password.as_str()), "the password is shown: {}", shown.replace(password.as_str(), "<password>"));
    passed()
}
