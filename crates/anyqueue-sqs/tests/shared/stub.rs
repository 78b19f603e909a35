//! A server that speaks SQS's protocol and says what a test tells it to.
#![allow(dead_code, clippy::unwrap_used, reason = "each test program uses a part of it, and fails where something fails")]

use std::sync::{Arc, LazyLock, Mutex};

use anyqueue_core::{Broker, ConnectOptions};
use anyqueue_testkit::{Sample, SystemClock};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A status and a body, for the so-many-th request of an operation; those on a companion queue have a name of their own, as
/// `receivemessage held`. A status of 0 is no answer at all.
pub(crate) type Answer = fn(&str, usize) -> (u16, String);
type Requests = Arc<Mutex<Vec<(String, String)>>>;

/// A server that says what it is told to, and remembers what it was asked.
pub(crate) struct Stub {
    port: u16,
    requests: Requests,
}

impl Stub {
    pub(crate) async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, requests) = (listener.local_addr().unwrap().port(), Requests::default());
        let noted = requests.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer, noted.clone()));
            }
        });
        Self { port, requests }
    }

    pub(crate) async fn connect(&self) -> Arc<dyn Broker> {
        self.connect_with("").await
    }

    /// With more options, as in `&fifo=true`.
    pub(crate) async fn connect_with(&self, options: &str) -> Arc<dyn Broker> {
        let url = format!("sqs://127.0.0.1:{}?bands=1&wait=1s{options}", self.port);
        anyqueue_sqs::DRIVER.open(ConnectOptions::new(&url, Arc::new(SystemClock)).unwrap()).await.unwrap()
    }

    /// The bodies of all requests of an operation.
    pub(crate) fn asked(&self, operation: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|(of, _)| of == operation).map(|(_, body)| body.clone()).collect()
    }

    /// The operations of all requests so far, in order.
    pub(crate) fn operations(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|(of, _)| of.clone()).collect()
    }

    pub(crate) fn count(&self, operation: &str) -> usize {
        self.asked(operation).len()
    }
}

/// One connection: requests are answered one after another, until it is closed.
async fn serve(stream: TcpStream, answer: Answer, requests: Requests) -> Option<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut operation, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
            let line = line.trim_end().to_ascii_lowercase();
            if let Some(target) = line.strip_prefix("x-amz-target: amazonsqs.") {
                operation = target.to_owned();
            }
            if let Some(bytes) = line.strip_prefix("content-length: ") {
                length = bytes.parse().ok()?;
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        let body = String::from_utf8(body).unwrap();
        let queue = word(&body, "QueueUrl").or(word(&body, "QueueName")).unwrap_or_default();
        if let Some((_, part)) = queue.split_once("__").filter(|_| operation != "getqueueurl") {
            operation = format!("{operation} {part}");
        }
        let number = {
            let mut requests = requests.lock().unwrap();
            requests.push((operation.clone(), body.clone()));
            requests.iter().filter(|(of, _)| *of == operation).count()
        };
        let (status, mut body) = answer(&operation, number);
        if status == 0 {
            std::future::pending::<()>().await;
        }
        if operation == "getqueueurl" {
            body = body.replace("/q\"", &format!("/{queue}\""));
        }
        let head =
            format!("HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.0\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.get_mut().write_all((head + &body).as_bytes()).await.ok()?;
    }
}

/// The text of a field.
pub(crate) fn word(body: &str, key: &str) -> Option<String> {
    let (_, rest) = body.split_once(&format!(r#""{key}":""#))?;
    rest.split('"').next().map(str::to_owned)
}

pub(crate) fn ok(body: &str) -> (u16, String) {
    (200, body.to_owned())
}

pub(crate) fn refused(code: &str) -> (u16, String) {
    (400, format!(r#"{{"__type":"com.amazonaws.sqs#{code}","message":"said the server"}}"#))
}

/// What every test needs to get as far as its own question.
pub(crate) fn usual(operation: &str) -> (u16, String) {
    match operation {
        "getqueueurl" => ok(r#"{"QueueUrl":"http://127.0.0.1/000000000000/q"}"#),
        _ => ok("{}"),
    }
}

/// A receive's answer with one task, the same each time.
pub(crate) fn message() -> String {
    static BODY: LazyLock<String> = LazyLock::new(|| String::from_utf8(Sample::new(1).envelope().body.to_vec()).unwrap());
    received(&BODY, 1, "p1024 t60", "")
}

/// A receive's answer with one message; `more` is further system attributes, each with a comma before it.
pub(crate) fn received(body: &str, sent: u64, slip: &str, more: &str) -> String {
    let body = body.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        r#"{{"Messages":[{{"MessageId":"m","ReceiptHandle":"r","Body":"{body}","Attributes":{{"ApproximateReceiveCount":"1","SentTimestamp":"{sent}"{more}}},"MessageAttributes":{{"anyqueue":{{"DataType":"String","StringValue":"{slip}"}}}}}}]}}"#
    )
}

/// A batch's answer by which everything worked.
pub(crate) fn worked() -> (u16, String) {
    let all: Vec<_> = (0..10).map(|n| format!(r#"{{"Id":"{n}","MessageId":"n{n}","MD5OfMessageBody":"x"}}"#)).collect();
    ok(&format!(r#"{{"Successful":[{}],"Failed":[]}}"#, all.join(",")))
}
