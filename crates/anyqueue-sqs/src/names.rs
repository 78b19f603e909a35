//! Names on SQS: 1 to 80 characters of `A-Z a-z 0-9 _ -`, and no dots.

use anyqueue_core::{QueueName, TaskId};

/// What SQS allows.
const MAX: usize = 80;
/// The longest ending that a companion queue has, with `.fifo`.
const ENDING: usize = 18;
/// The longest prefix: what it leaves still holds a shortened name.
pub(crate) const MAX_PREFIX: usize = 20;

/// Which of a queue's SQS queues is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// The band that holds 1024.
    Plain,
    /// The band whose last priority is this.
    Band(u32),
    /// What is held.
    Held,
}

/// The name of one SQS queue. Two queues never get one name: `__` is in no escaped name, but where it begins an escape or
/// an ending.
pub(crate) fn name(prefix: &str, queue: &QueueName, part: Part, fifo: bool) -> String {
    let mut name = stem(queue.as_str(), MAX - ENDING - prefix.len());
    match part {
        Part::Plain => {}
        Part::Band(u32::MAX) => name.push_str("__rest"),
        Part::Band(end) => name.push_str(&format!("__p{end}")),
        Part::Held => name.push_str("__held"),
    }
    format!("{prefix}{name}{}", if fifo { ".fifo" } else { "" })
}

fn stem(queue: &str, room: usize) -> String {
    let mut escaped = String::with_capacity(queue.len());
    for (at, c) in queue.char_indices() {
        match (c, queue.as_bytes().get(at + 1)) {
            ('.', _) => escaped.push_str("__d"),
            ('_', None | Some(b'_' | b'.')) => escaped.push_str("__u"),
            _ => escaped.push(c),
        }
    }
    if escaped.len() <= room {
        return escaped;
    }
    // Its digest tells a shortened name from all others; UUIDs are a digest that the core has.
    let digest = TaskId::foreign("sqs", "name", queue).to_string().replace('-', "");
    escaped.truncate(room - digest.len() - 3);
    format!("{escaped}__x{digest}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn plain(queue: &str) -> String {
        name("", &QueueName::new(queue).unwrap(), Part::Plain, false)
    }

    #[test]
    fn plain_names_stay_plain() {
        for queue in ["default", "send-mail", "send_mail", "A", "a-_-b"] {
            assert_eq!(plain(queue), queue);
        }
        assert_eq!((plain("a.b"), plain("a__b"), plain("a_")), ("a__db".into(), "a__u_b".into(), "a__u".into()));
    }

    #[test]
    fn no_two_queues_meet_and_no_name_is_too_long() {
        let long = "x".repeat(57);
        let dots = ".".repeat(57);
        let mut queues = vec!["a.b", "a_b", "a__b", "a_.b", "a._b", "a__db", "a__u_b", "a_", "a", "a__held", "a.held", "a__rest"]
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        queues.extend(["1", "2", "_", "."].into_iter().flat_map(|end| [format!("{long}{end}"), format!("{dots}{end}")]));
        let parts = [Part::Plain, Part::Band(512), Part::Band(u32::MAX), Part::Band(u32::MAX - 1), Part::Held];
        for prefix in ["", "a", "0123456789012345678-"] {
            let mut seen = BTreeSet::new();
            for queue in &queues {
                let queue = QueueName::new(queue).unwrap();
                for part in parts {
                    let name = name(prefix, &queue, part, true);
                    assert!(name.len() <= 80, "{name}");
                    assert!(name.trim_end_matches(".fifo").chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)));
                    assert!(seen.insert(name.clone()), "{queue} meets another at {name}");
                }
            }
        }
    }
}
