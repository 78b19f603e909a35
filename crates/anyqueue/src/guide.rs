//! The guide: what is promised, how to use it, how to run it.
//!
//! | page | what it answers |
//! |---|---|
//! | [`states`] | where can a task be, and what moves it? |
//! | [`semantics`] | what is promised, what does each outcome do, and what happens when something dies? |
//! | [`sending`] | how do tasks get in, and when is a send safe? |
//! | [`workers`] | how is a worker written, in Rust or in another language? |
//! | [`settings`] | what can be set, and where? |
//! | [`brokers`] | what can each broker do, and what is added to it? |
//! | [`wire_form`] | what does a task look like on the broker, for producers in other languages? |
//! | [`operating`] | how is it watched and looked after? |
//! | [`stopping`] | what do signals, limits and exit codes mean? |
//! | [`testing`] | how are workers tested, without waiting? |

/// Where a task can be, and what moves it.
///
#[doc = include_str!("../docs/states.svg")]
///
#[doc = include_str!("../docs/states.md")]
pub mod states {}

/// What is promised, what each outcome does, and what happens when something dies.
///
#[doc = include_str!("../docs/semantics.md")]
pub mod semantics {}

/// How tasks get in, and when a send is safe.
///
#[doc = include_str!("../docs/sending.md")]
pub mod sending {}

/// How a worker is written, in Rust or in another language.
///
#[doc = include_str!("../docs/workers.md")]
pub mod workers {}

/// What can be set, and where.
///
#[doc = include_str!("../docs/settings.md")]
pub mod settings {}

/// What each broker really does: how each verb is kept, every caveat, and its reason.
///
#[doc = include_str!("../docs/brokers.md")]
pub mod brokers {}

/// What a task looks like on the broker.
///
#[doc = include_str!("../docs/wire_form.md")]
pub mod wire_form {}

/// How queues are watched and looked after.
///
#[doc = include_str!("../docs/operating.md")]
pub mod operating {}

/// What signals, limits and exit codes mean.
///
#[doc = include_str!("../docs/stopping.md")]
pub mod stopping {}

/// How workers are tested, without waiting.
///
#[doc = include_str!("../docs/testing.md")]
pub mod testing {}
