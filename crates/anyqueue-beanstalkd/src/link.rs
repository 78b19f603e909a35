//! One connection: many requests under way at once, answers in order.
//!
//! A caller writes to the socket itself; the connection's own task reads, writes what did not fit, and notices silence.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Error, Result};
use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::error;
use crate::request::{Request, Selection, Written};
use crate::wire::{Command, Reply, decode};

/// How often silence is looked for.
const TICK: Duration = Duration::from_millis(500);

/// The least room for what is read at once.
const ROOM: usize = 16 * 1024;

/// A connection that has been quiet for so long says a word. It finds out whether the server lives; and a server of
/// version 1.12, which sometimes forgets that a job has run out of time, looks at the connection's jobs again.
const QUIET: Duration = Duration::from_millis(700);

/// The answers to one request, in order.
pub(crate) type Answers = oneshot::Receiver<Result<Vec<Reply>>>;

/// A connection. Dropping the last handle closes it, and the server gives back what it holds.
#[derive(Debug)]
pub(crate) struct Link {
    /// No other connection of this process has the same number: the epoch of its receipts.
    pub(crate) number: u64,
    inner: Arc<Inner>,
    io: AbortHandle,
}

#[derive(Debug)]
struct Inner {
    server: String,
    output: OwnedWriteHalf,
    patience: Duration,
    state: Mutex<State>,
    more_to_write: Notify,
}

#[derive(Debug)]
struct State {
    out: BytesMut,
    due: VecDeque<Due>,
    selection: Selection,
    /// When the server last gave a sign of life, or an answer first became due.
    moved: Instant,
    dead: Option<Error>,
}

/// A request whose answers are not all here. Those to commands that chose tubes are checked and not handed on.
#[derive(Debug)]
struct Due {
    of: Written,
    replies: Vec<Reply>,
    tell: Option<oneshot::Sender<Result<Vec<Reply>>>>,
}

impl Link {
    /// Takes over a connected stream. `ended` is called once, when the connection is no more.
    pub(crate) fn new(
        runtime: &Handle,
        number: u64,
        server: String,
        stream: TcpStream,
        patience: Duration,
        ended: impl FnOnce() + Send + 'static,
    ) -> Self {
        let state = State {
            out: BytesMut::new(),
            due: VecDeque::new(),
            selection: Selection::default(),
            moved: Instant::now(),
            dead: None,
        };
        let (input, output) = stream.into_split();
        let inner = Arc::new(Inner { server, output, patience, state: Mutex::new(state), more_to_write: Notify::new() });
        let (run, ended) = (inner.clone(), Ended(inner.clone(), Some(ended)));
        let io = runtime.spawn(async move {
            let _ended = ended;
            let error = run.io(input).await;
            tracing::debug!(server = run.server, error = anyqueue_core::chain(&error), "a connection has ended");
            run.die(&error);
        });
        Self { number, inner, io: io.abort_handle() }
    }

    /// Sends a request. The answers may be dropped; they are read all the same.
    pub(crate) fn submit(&self, request: Request) -> Result<Answers> {
        let (tell, answers) = oneshot::channel();
        if request.is_empty() {
            drop(tell.send(Ok(Vec::new())));
            return Ok(answers);
        }
        let mut state = self.inner.state();
        if let Some(dead) = &state.dead {
            return Err(dead.duplicate());
        }
        if state.due.is_empty() {
            state.moved = Instant::now();
        }
        let State { out, selection, due, .. } = &mut *state;
        let of = request.write(selection, out);
        due.push_back(Due { replies: Vec::with_capacity(of.left), of, tell: Some(tell) });
        if let Err(e) = self.inner.flush(&mut state) {
            drop(state);
            self.inner.die(&error::io(e, &self.inner.server));
        }
        Ok(answers)
    }

    /// Sends a request and waits for its answers.
    pub(crate) async fn call(&self, request: Request) -> Result<Vec<Reply>> {
        answered(self.submit(request)?).await
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.inner.state().dead.is_some()
    }

    /// Ends it now.
    pub(crate) fn close(&self, why: &Error) {
        self.inner.die(why);
    }
}

/// Calls back when the connection's task ends, in whatever way: a runtime that is shut down just drops it, and nobody
/// would ever answer those who wait.
struct Ended<F: FnOnce()>(Arc<Inner>, Option<F>);

impl<F: FnOnce()> Drop for Ended<F> {
    fn drop(&mut self) {
        self.0.die(&error::closed());
        if let Some(call) = self.1.take() {
            call();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.inner.die(&error::closed());
        self.io.abort();
    }
}

/// Waits for the answers to a request.
pub(crate) async fn answered(answers: Answers) -> Result<Vec<Reply>> {
    answers.await.unwrap_or_else(|_| Err(error::closed().effect_unknown()))
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what the socket takes now; the rest is the task's.
    fn flush(&self, state: &mut State) -> io::Result<()> {
        while !state.out.is_empty() {
            match self.output.try_write(&state.out) {
                Ok(count) => state.out.advance(count),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.more_to_write.notify_one();
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Writes on after the socket was full: the server's machine has taken something. Only then is a write a sign of
    /// life, since a socket that is not full takes bytes for a dead one too.
    fn go_on(&self, state: &mut State) -> io::Result<()> {
        let before = state.out.len();
        let flushed = self.flush(state);
        if state.out.len() < before {
            state.moved = Instant::now();
        }
        flushed
    }

    /// Fails all that is under way.
    fn die(&self, error: &Error) {
        let due = {
            let mut state = self.state();
            state.dead.get_or_insert_with(|| error.duplicate());
            state.out.clear();
            std::mem::take(&mut state.due)
        };
        self.more_to_write.notify_one();
        for tell in due.into_iter().filter_map(|due| due.tell) {
            // Whoever asked may have gone.
            drop(tell.send(Err(error.duplicate().effect_unknown())));
        }
    }

    async fn io(&self, mut input: OwnedReadHalf) -> Error {
        let (mut buffer, mut ticks) = (BytesMut::with_capacity(64 * 1024), interval(TICK));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let writing = match &*self.state() {
                State { dead: Some(dead), .. } => return dead.duplicate(),
                state => !state.out.is_empty(),
            };
            buffer.reserve(ROOM);
            let ended = tokio::select! {
                read = input.read_buf(&mut buffer) => match read {
                    Ok(0) => Err(error::io(io::ErrorKind::UnexpectedEof.into(), &self.server)),
                    Ok(_) => self.take_in(&mut buffer),
                    Err(e) => Err(error::io(e, &self.server)),
                },
                ready = self.output.writable(), if writing => {
                    ready.and_then(|()| self.go_on(&mut self.state())).map_err(|e| error::io(e, &self.server))
                }
                () = self.more_to_write.notified() => Ok(()),
                _ = ticks.tick() => self.listen(),
            };
            if let Err(e) = ended {
                return e;
            }
        }
    }

    fn take_in(&self, buffer: &mut BytesMut) -> Result<()> {
        let mut state = self.state();
        state.moved = Instant::now();
        while let Some(reply) = decode(buffer).map_err(|e| error::malformed(&e, &self.server))? {
            let due = state.due.front_mut().ok_or_else(|| error::unexpected(&reply, "nothing"))?;
            if due.of.choosing > 0 {
                due.of.choosing -= 1;
                if !matches!(reply, Reply::Using(_) | Reply::Watching(_)) {
                    // What follows would go to another tube than meant.
                    return Err(error::unexpected(&reply, "use"));
                }
                continue;
            }
            if due.of.changes.front() == Some(&due.replies.len()) {
                due.of.changes.pop_front();
                if !matches!(reply, Reply::Using(_)) {
                    return Err(error::unexpected(&reply, "use"));
                }
            }
            due.replies.push(reply);
            due.of.left -= 1;
            if due.of.left == 0
                && let Some(Due { tell: Some(tell), replies, .. }) = state.due.pop_front()
            {
                drop(tell.send(Ok(replies)));
            }
        }
        Ok(())
    }

    /// Gives up on a server that is silent although an answer is due, and asks one that had no reason to speak.
    fn listen(&self) -> Result<()> {
        let mut state = self.state();
        let silence = state.moved.elapsed();
        match state.due.front().map(|due| due.of.wait) {
            Some(wait) if silence > self.patience + wait => Err(error::silent(&self.server, silence.as_secs())),
            None if silence > QUIET => {
                let State { out, selection, due, .. } = &mut *state;
                let of = Request::of(&Command::ListTubeUsed).write(selection, out);
                due.push_back(Due { of, replies: Vec::new(), tell: None });
                state.moved = Instant::now();
                self.flush(&mut state).map_err(|e| error::io(e, &self.server))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use anyqueue_core::ErrorKind;

    use super::*;

    /// A connection to a server that takes all it is sent and never answers.
    async fn to_a_mute(runtime: &Handle) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut mute, _) = listener.accept().unwrap();
        std::thread::spawn(move || while mute.read(&mut [0; 1024]).is_ok_and(|count| count > 0) {});
        Link::new(runtime, 1, "mute".into(), stream, Duration::from_secs(1), || ())
    }

    fn word() -> Request {
        Request::of(&Command::ListTubeUsed)
    }

    #[tokio::test]
    async fn silence_is_noticed_however_much_is_written() {
        let link = to_a_mute(&Handle::current()).await;
        let mut first = link.submit(word()).unwrap();
        let begun = Instant::now();
        let error = loop {
            match tokio::time::timeout(Duration::from_millis(20), &mut first).await {
                Ok(answer) => break answer.unwrap().unwrap_err(),
                Err(_) => drop(link.submit(word()).unwrap()),
            }
            assert!(begun.elapsed() < Duration::from_secs(4), "not noticed");
        };
        assert_eq!(error.kind(), ErrorKind::Timeout);
    }

    #[test]
    fn a_runtime_that_ends_leaves_nobody_waiting() {
        let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (home, guest) = (runtime(), runtime());
        let link = home.block_on(to_a_mute(home.handle()));
        let under_way = link.submit(word()).unwrap();
        drop(home);
        guest.block_on(async {
            let both = async { [answered(under_way).await, link.call(word()).await] };
            let both = tokio::time::timeout(Duration::from_secs(3), both).await.expect("no endless wait");
            assert_eq!(both.map(|answer| answer.unwrap_err().kind()), [ErrorKind::Closed; 2]);
        });
    }
}
