//! Names that the server keeps for itself.

use anyqueue_core::{Error, QueueName, Result};

/// RabbitMQ makes no queues for others whose names begin with this.
const RESERVED: &str = "amq.";

/// Refuses a queue that the server would refuse as if a right were missing.
pub(crate) fn check(queue: &QueueName) -> Result<()> {
    if !queue.as_str().starts_with(RESERVED) {
        return Ok(());
    }
    let text = format!("queue `{queue}`: RabbitMQ keeps names that begin with `{RESERVED}` for itself; choose another name");
    Err(Error::invalid(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_servers_own_names_are_refused() {
        for (name, fine) in [("amq.mail", false), ("amq.", false), ("amq", true), ("amqp.mail", true), ("mail.amq.x", true)] {
            assert_eq!(check(&QueueName::new(name).unwrap()).is_ok(), fine, "{name}");
        }
    }
}
