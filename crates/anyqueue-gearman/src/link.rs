//! One connection: many requests under way at once, answers in order.
//!
//! A caller writes to the socket itself; the connection's own task reads, writes what did not fit, and notices silence.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyqueue_core::{Error, Result};
use bytes::{Buf, BytesMut};
use gearman::protocol::{GearmanCodec, Packet};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::codec::{Decoder, Encoder};

use crate::error;
use crate::packet::{Reply, Word, echo, is_answered, read};

/// How often silence is looked for.
const TICK: Duration = Duration::from_millis(500);

/// A connection that has been quiet for so long is asked for a sign of life.
const QUIET: Duration = Duration::from_secs(1);

/// The least room for what is read at once.
const ROOM: usize = 16 * 1024;

/// The answers to one request, in order, and where jobs that it ended or renewed were not ours: after how many of them.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    pub(crate) replies: Vec<Reply>,
    pub(crate) not_found: Vec<usize>,
}

/// Answers that are on their way.
pub(crate) type Answers = oneshot::Receiver<Result<Answered>>;

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
    bell: Notify,
    rung: AtomicBool,
    trips: Arc<AtomicU64>,
}

#[derive(Debug)]
struct State {
    out: BytesMut,
    due: VecDeque<Due>,
    /// When the server last gave a sign of life, or an answer first became due.
    moved: Instant,
    dead: Option<Error>,
}

/// A request whose answers are not all here.
#[derive(Debug)]
struct Due {
    left: usize,
    got: Answered,
    tell: Option<oneshot::Sender<Result<Answered>>>,
}

impl Link {
    /// Takes over a connected stream. `trips` counts the requests that are answered.
    pub(crate) fn new(runtime: &Handle, server: String, stream: TcpStream, patience: Duration, trips: Arc<AtomicU64>) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let state = State { out: BytesMut::new(), due: VecDeque::new(), moved: Instant::now(), dead: None };
        let (input, output) = stream.into_split();
        let inner = Arc::new(Inner {
            server,
            output,
            patience,
            state: Mutex::new(state),
            more_to_write: Notify::new(),
            bell: Notify::new(),
            rung: AtomicBool::new(false),
            trips,
        });
        let (run, ended) = (inner.clone(), Ended(inner.clone()));
        let io = runtime.spawn(async move {
            let _ended = ended;
            let error = run.io(input).await;
            tracing::debug!(server = run.server, error = anyqueue_core::chain(&error), "a connection has ended");
            run.die(&error);
        });
        Self { number: NUMBERS.fetch_add(1, Ordering::Relaxed), inner, io: io.abort_handle() }
    }

    /// Sends a request: its packets go out together. The answers may be dropped; they are read all the same.
    pub(crate) fn submit(&self, packets: Vec<Packet>) -> Result<Answers> {
        let (tell, answers) = oneshot::channel();
        let left = packets.iter().filter(|packet| is_answered(packet)).count();
        let mut state = self.inner.state();
        if let Some(dead) = &state.dead {
            return Err(dead.duplicate());
        }
        if state.due.is_empty() {
            state.moved = Instant::now();
        }
        for packet in packets {
            GearmanCodec::new().encode(packet, &mut state.out).map_err(|e| error::malformed(e, &self.inner.server))?;
        }
        if left == 0 {
            drop(tell.send(Ok(Answered::default())));
        } else {
            self.inner.trips.fetch_add(1, Ordering::Relaxed);
            state.due.push_back(Due { left, got: Answered::default(), tell: Some(tell) });
        }
        if let Err(e) = self.inner.flush(&mut state) {
            drop(state);
            self.inner.die(&error::io(e, &self.inner.server));
        }
        Ok(answers)
    }

    /// Sends a request and waits for its answers.
    pub(crate) async fn call(&self, packets: Vec<Packet>) -> Result<Answered> {
        self.submit(packets)?.await.unwrap_or_else(|_| Err(error::closed().effect_unknown()))
    }

    /// Forgets that the server has rung: what was there before now is about to be looked for.
    pub(crate) fn hush(&self) {
        self.inner.rung.store(false, Ordering::Release);
    }

    /// Waits until the server rings or the connection dies.
    pub(crate) async fn rung(&self) {
        let notified = self.inner.bell.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        if !self.inner.rung.load(Ordering::Acquire) && !self.is_dead() {
            notified.await;
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.inner.state().dead.is_some()
    }

    /// Ends it now.
    pub(crate) fn close(&self, why: &Error) {
        self.inner.die(why);
    }
}

/// Ends the connection however its task ends: a runtime that is shut down just drops it, and nobody would ever answer
/// those who wait.
struct Ended(Arc<Inner>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.die(&error::closed());
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.inner.die(&error::closed());
        self.io.abort();
    }
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
        self.bell.notify_waiters();
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
        let (mut state, mut codec) = (self.state(), GearmanCodec::new());
        state.moved = Instant::now();
        while let Some(packet) = codec.decode(buffer).map_err(|e| error::malformed(e, &self.server))? {
            match read(packet) {
                Some(Word::Reply(reply)) => Self::answer(&mut state, reply)?,
                Some(Word::NotFound) => {
                    if let Some(due) = state.due.front_mut() {
                        due.got.not_found.push(due.got.replies.len());
                    }
                }
                Some(Word::Wake) => {
                    self.rung.store(true, Ordering::Release);
                    self.bell.notify_waiters();
                }
                Some(Word::Other) => {}
                None => return Err(Error::new(anyqueue_core::ErrorKind::Protocol, "the job server sent a packet out of place")),
            }
        }
        Ok(())
    }

    fn answer(state: &mut State, reply: Reply) -> Result<()> {
        let due = state.due.front_mut().ok_or_else(|| error::unexpected(&reply, "nothing"))?;
        due.got.replies.push(reply);
        due.left -= 1;
        if due.left == 0
            && let Some(Due { tell: Some(tell), got, .. }) = state.due.pop_front()
        {
            drop(tell.send(Ok(got)));
        }
        Ok(())
    }

    /// Gives up on a server that is silent although an answer is due, and asks one that had no reason to speak.
    fn listen(&self) -> Result<()> {
        let mut state = self.state();
        let silence = state.moved.elapsed();
        match state.due.front() {
            Some(_) if silence > self.patience => Err(error::silent(&self.server, silence.as_secs())),
            None if silence > QUIET => {
                GearmanCodec::new().encode(echo(), &mut state.out).map_err(|e| error::malformed(e, &self.server))?;
                state.due.push_back(Due { left: 1, got: Answered::default(), tell: None });
                state.moved = Instant::now();
                self.flush(&mut state).map_err(|e| error::io(e, &self.server))
            }
            _ => Ok(()),
        }
    }
}
