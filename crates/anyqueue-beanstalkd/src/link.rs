//! One connection: many requests under way at once, answers in order.

use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{Error, Result};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::error;
use crate::request::Request;
use crate::stream::Stream;
use crate::wire::Reply;

/// The answers to one request, in order.
pub(crate) type Answers = oneshot::Receiver<Result<Vec<Reply>>>;

/// A connection. Dropping the last handle closes it, and the server gives back what it holds.
#[derive(Debug)]
pub(crate) struct Link {
    /// No other connection of this process has the same number: the epoch of its receipts.
    pub(crate) number: u64,
    stream: Arc<Stream>,
    io: AbortHandle,
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
        let (input, output) = stream.into_split();
        let stream = Arc::new(Stream::new(server, output, patience));
        let (run, ended) = (stream.clone(), Ended(stream.clone(), Some(ended)));
        let io = runtime.spawn(async move {
            let _ended = ended;
            let error = run.io(input).await;
            tracing::debug!(server = run.server, error = anyqueue_core::chain(&error), "a connection has ended");
            run.die(&error);
        });
        Self { number, stream, io: io.abort_handle() }
    }

    /// Sends a request. The answers may be dropped; they are read all the same.
    pub(crate) fn submit(&self, request: Request) -> Result<Answers> {
        let (tell, answers) = oneshot::channel();
        if request.is_empty() {
            drop(tell.send(Ok(Vec::new())));
            return Ok(answers);
        }
        self.stream.submit(request, tell)?;
        Ok(answers)
    }

    /// Sends a request and waits for its answers.
    pub(crate) async fn call(&self, request: Request) -> Result<Vec<Reply>> {
        answered(self.submit(request)?).await
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.stream.is_dead()
    }

    /// The address of the server.
    pub(crate) fn server(&self) -> &str {
        &self.stream.server
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) {
        self.stream.ended().await;
    }

    /// Breaks off its wait: what it may have been given comes, then it ends.
    pub(crate) fn break_off(&self) {
        self.stream.write_no_more();
    }

    /// Ends it now.
    pub(crate) fn close(&self, why: &Error) {
        self.stream.die(why);
    }
}

/// Calls back when the connection's task ends, in whatever way: a runtime that is shut down just drops it, and nobody
/// would ever answer those who wait.
struct Ended<F: FnOnce()>(Arc<Stream>, Option<F>);

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
        self.stream.die(&error::closed());
        self.io.abort();
    }
}

/// Waits for the answers to a request.
pub(crate) async fn answered(answers: Answers) -> Result<Vec<Reply>> {
    answers.await.unwrap_or_else(|_| Err(error::closed().effect_unknown()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;

    use anyqueue_core::ErrorKind;
    use tokio::time::Instant;

    use super::*;
    use crate::wire::Command;

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
