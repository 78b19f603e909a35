//! What happens on a connection: bytes out, replies in.
//!
//! A caller writes to the socket itself; the connection's own task reads, writes what did not fit, and notices silence.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Error, Result};
use bytes::{Buf, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::error;
use crate::request::{Request, Selection, Written};
use crate::wire::{Command, Reply, decode};

/// How often silence is looked for.
const TICK: Duration = Duration::from_millis(500);

/// The least room for what is read at once.
const ROOM: usize = 16 * 1024;

/// A connection that has been quiet for so long says a word. It finds out whether the server lives; and the server,
/// which sometimes forgets that a job has run out of time, looks at the connection's jobs again.
const QUIET: Duration = Duration::from_millis(700);

/// Where the answers to one request go.
pub(crate) type Tell = oneshot::Sender<Result<Vec<Reply>>>;

/// The inside of a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) server: String,
    output: OwnedWriteHalf,
    patience: Duration,
    state: Mutex<State>,
    more_to_write: Notify,
    /// Rung when it is dead.
    ended: Notify,
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
    tell: Option<Tell>,
}

impl Stream {
    pub(crate) fn new(server: String, output: OwnedWriteHalf, patience: Duration) -> Self {
        let state = State {
            out: BytesMut::new(),
            due: VecDeque::new(),
            selection: Selection::default(),
            moved: Instant::now(),
            dead: None,
        };
        Self { server, output, patience, state: Mutex::new(state), more_to_write: Notify::new(), ended: Notify::new() }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state().dead.is_some()
    }

    /// Writes a request; its answers are told when all are there.
    pub(crate) fn submit(&self, request: Request, tell: Tell) -> Result<()> {
        let mut state = self.state();
        if let Some(dead) = &state.dead {
            return Err(dead.duplicate());
        }
        if state.due.is_empty() {
            state.moved = Instant::now();
        }
        let State { out, selection, due, .. } = &mut *state;
        let of = request.write(selection, out);
        due.push_back(Due { replies: Vec::with_capacity(of.left), of, tell: Some(tell) });
        if let Err(e) = self.flush(&mut state) {
            drop(state);
            self.die(&error::io(e, &self.server));
        }
        Ok(())
    }

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
    pub(crate) fn die(&self, error: &Error) {
        let due = {
            let mut state = self.state();
            state.dead.get_or_insert_with(|| error.duplicate());
            state.out.clear();
            std::mem::take(&mut state.due)
        };
        self.more_to_write.notify_one();
        self.ended.notify_waiters();
        for tell in due.into_iter().filter_map(|due| due.tell) {
            // Whoever asked may have gone.
            drop(tell.send(Err(error.duplicate().effect_unknown())));
        }
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) {
        let ended = self.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if !self.is_dead() {
            ended.await;
        }
    }

    /// Writes no more: the server answers what it has, ends a wait, and then the connection.
    pub(crate) fn write_no_more(&self) {
        let socket: &TcpStream = self.output.as_ref();
        if let Err(e) = rustix::net::shutdown(socket, rustix::net::Shutdown::Write) {
            self.die(&error::io(e.into(), &self.server));
        }
    }

    /// Reads and writes until the connection ends: why.
    pub(crate) async fn io(&self, mut input: OwnedReadHalf) -> Error {
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
