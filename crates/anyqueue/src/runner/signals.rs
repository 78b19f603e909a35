//! What signals mean: TERM, INT and QUIT stop, a second one skips ahead; USR2 pauses, CONT resumes.

use anyqueue_core::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

use super::handle::RunnerHandle;

/// Ends with the runner.
pub(crate) struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(crate) fn listen(handle: RunnerHandle) -> Result<Listening> {
    let on = |kind| signal(kind).map_err(|e| Error::config("cannot listen to signals").because(e));
    let stops = [on(SignalKind::terminate())?, on(SignalKind::interrupt())?, on(SignalKind::quit())?];
    let pause = on(SignalKind::user_defined2())?;
    // SIGCONT has no name of its own in tokio; its number is 18 on Linux's common architectures.
    let resume = on(SignalKind::from_raw(rustix::process::Signal::CONT.as_raw()))?;
    Ok(Listening(tokio::spawn(obey(handle, stops, pause, resume))))
}

async fn obey(handle: RunnerHandle, stops: [Signal; 3], mut pause: Signal, mut resume: Signal) {
    let [mut term, mut int, mut quit] = stops;
    loop {
        tokio::select! {
            _ = term.recv() => stop(&handle),
            _ = int.recv() => stop(&handle),
            _ = quit.recv() => stop(&handle),
            _ = pause.recv() => handle.pause(),
            _ = resume.recv() => handle.resume(),
        }
    }
}

fn stop(handle: &RunnerHandle) {
    match handle.level() {
        0 => tracing::info!("stopping: running handlers finish; a second signal cuts them short"),
        1 => tracing::warn!("cutting running handlers short; a third signal leaves at once"),
        _ => tracing::warn!("leaving at once"),
    }
    handle.hurry();
}
