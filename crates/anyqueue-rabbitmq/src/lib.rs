//! The RabbitMQ broker of anyqueue: RabbitMQ 3.10 and later, quorum or classic queues. Tried on 3.10.8, 4.0.5 and 4.3.6.
//!
//! `amqp://user:password@host:5672/vhost`, several hosts of a cluster in one URL (`amqp://a,b:5673/jobs`), or `amqps://…` for
//! TLS (the feature `tls`, on by default: rustls with ring). Options, after `?` or in `queue.toml`: `type`, `bands`,
//! `x_max_priority`, `consumer_timeout`, `max_payload`, `liveness`, `management`, `tls_ca`, `tls_certificate`, `tls_key`.
//!
//! # On the server
//! | name | what |
//! |---|---|
//! | `<queue>` | ready tasks of the band that holds the default priority, where other clients put theirs |
//! | `<queue>;512`, `<queue>;rest` | ready tasks of another band, named after the last priority in it |
//! | `<queue>;held` | held tasks, and what a delivery limit throws out of the others |
//! | `<queue>;pause` | a marker while the queue is paused |
//! | `anyqueue;delay;0` to `27`, `anyqueue;delay;due` | exchanges and queues of the ladder of delays, one ladder per virtual host |
//! | `<queue>;unharmed` | for a day: which tasks came back although no worker died, and which of those on a run alone a worker had |
//! | `anyqueue;delay;stray` | delayed tasks that fell due for a queue that was deleted, and held ones that a policy's delivery limit threw out; `check` tells of them |
//! | `anyqueue;walk;…` | while somebody looks through a queue: the right to do so |
//!
//! A task's body is the message; its priority, TTR and due time are in the headers `anyqueue-priority`, `anyqueue-ttr`
//! (milliseconds) and `anyqueue-due` (milliseconds since 1970); `anyqueue-probation` marks one that is to run alone, and
//! `anyqueue-returns` says how often one that was given back had come back before. A message without them has the queue's
//! defaults.
//!
//! # How it works
//! One connection carries what is published: confirmed, mandatory, persistent, as many under way as a batch has. A second one
//! carries the rest, so that a server that has run out of memory or disk, and stops reading from who publishes, still hears
//! that tasks are done. Sends are refused with [`Full`](anyqueue_core::ErrorKind::Full) meanwhile.
//!
//! Each consumer has a channel, and consumes from its bands while somebody asks for tasks; how much the server may send ahead
//! follows what is asked for. A quarter of a second after the last one asked, consuming ends, and what was not handed out
//! goes back to its place in line. Before a less urgent task begins, a band that may have more than it was allowed to send is
//! asked whether it has.
//!
//! RabbitMQ knows no leases. The worker's own clock ends one and gives the task back; a worker that is frozen or cut off
//! loses its connection after three heartbeats, and all its tasks with it. The server itself ends reservations after its
//! `consumer_timeout`, 30 minutes unless it is set: a task may be reserved for two minutes less, touches included. Set the
//! option to what the server has; from 3.12 on, our queues are made with it (`x-consumer-timeout`).
//!
//! Acknowledgements have no answer in AMQP. A settle ends with a request on the same channel, whose answer says that the
//! server has heard all of it; what a quorum queue has heard is on disk a moment later (`settle_window`). Acknowledgements of
//! tasks that came together go together. A retry, a release or a hold is a confirmed copy first: not before the channel that
//! holds the task has answered, so that a worker that was cut off writes none.
//!
//! A quorum queue counts how often a task came back, and that is how deaths are seen. Tasks that were looked at or fetched and
//! not begun come back too: they are noted before, and the count is put right. So does what was on its way to a consumer that
//! was just cancelled, and of that nobody can know: a task that is on its run alone is noted when a worker gets it.
//!
//! # Good to know
//! * Delays are rounded up to seconds. Peeking at delayed tasks, or purging them, walks through those of all queues.
//! * A quorum queue is a group of processes on the server, and a queue of ours is seven of them: `bands = "none"` makes it
//!   three. The first declare in a virtual host also makes the ladder of 28.
//! * Two messages of another client with the same body and without a `message_id` are taken for one task by its id.
//! * A purge does not reach what workers of other processes have fetched already.

mod admin;
mod bands;
mod broker;
mod capabilities;
mod config;
mod consumer;
mod diagnose;
mod error;
mod held;
mod hello;
mod keeper;
mod layout;
mod line;
mod link;
mod management;
mod message;
mod names;
mod notes;
mod pause;
mod publish;
mod saying;
mod settle;
mod shared;
mod topology;
mod waiting;
mod walk;
mod withheld;

use anyqueue_core::Driver;

/// The driver: `amqp://localhost:5672`.
pub const DRIVER: Driver = Driver {
    name: "rabbitmq",
    schemes: &["amqp", "amqps", "rabbitmq"],
    summary: "RabbitMQ 3.10 and later, quorum or classic queues",
    example: "amqp://localhost:5672",
    options: config::OPTIONS,
    capabilities: capabilities::CAPABILITIES,
    connect: |options| Box::pin(broker::RabbitBroker::connect(options)),
};
