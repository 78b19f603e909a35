//! W3C trace context, carried in the header `traceparent`.
//!
//! A task that is sent by a worker continues the trace of the task being worked. Programs with a tracer of their own set
//! the header themselves: `NewTask::header("traceparent", …)`.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyqueue_core::Wire;

/// The header's name (W3C Trace Context, level 1).
pub(crate) const TRACEPARENT: &str = "traceparent";

thread_local! {
    static CURRENT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes a task that is sent from inside a traced one part of the same trace.
pub(crate) fn continue_current(wire: &mut Wire) {
    if wire.header(TRACEPARENT).is_none() {
        let current = CURRENT.with_borrow(Clone::clone);
        if let Some(parent) = current {
            wire.headers.push((TRACEPARENT.into(), parent));
        }
    }
}

/// The trace id of a `traceparent`, if it is a valid one: 32 hexadecimal digits, not all zero.
pub(crate) fn trace_id(traceparent: &str) -> Option<&str> {
    let mut parts = traceparent.split('-');
    let (version, trace, span, _flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, len| text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |text: &str| text.bytes().all(|b| b == b'0');
    (hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16) && !zero(trace) && !zero(span)).then_some(trace)
}

/// A child of a `traceparent`: the same trace and flags, a span id of its own.
pub(crate) fn child_of(traceparent: &str) -> Option<String> {
    let trace = trace_id(traceparent)?;
    let flags = traceparent.split('-').nth(3)?;
    Some(format!("00-{trace}-{:016x}-{flags}", fastrand::u64(1..)))
}

/// Runs a future with a trace as the current one, on whichever thread it is polled.
pub(crate) struct Traced<F> {
    inner: Pin<Box<F>>,
    parent: Option<String>,
}

impl<F> Traced<F> {
    pub(crate) fn new(inner: F, parent: Option<String>) -> Self {
        Self { inner: Box::pin(inner), parent }
    }
}

impl<F: Future> Future for Traced<F> {
    type Output = F::Output;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        struct Restore(Option<String>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(self.parent.clone()));
        self.inner.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_child_keeps_trace_and_flags() {
        let child = child_of(PARENT).unwrap();
        assert_eq!(trace_id(&child), trace_id(PARENT));
        assert!(child.ends_with("-01") && child != PARENT);
        for bad in [
            "",
            "00-x-y-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(child_of(bad), None, "{bad}");
        }
    }
}
