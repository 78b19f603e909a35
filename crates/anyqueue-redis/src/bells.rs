//! Being rung: one connection on which the server pushes that a queue has something for those who wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{PushInfo, PushKind, Value, cmd};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::dial::Link;
use crate::servers::Servers;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The bells of all queues that are listened to.
#[derive(Debug)]
pub(crate) struct Bells {
    shared: Arc<Shared>,
    servers: Arc<Servers>,
    task: Mutex<Option<AbortHandle>>,
}

#[derive(Debug, Default)]
struct Shared {
    bells: Mutex<HashMap<String, watch::Sender<u64>>>,
    /// There are bells that the server has not been asked for.
    more: Notify,
    listening: AtomicBool,
}

impl Shared {
    fn bells(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<u64>>> {
        self.bells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self) -> Vec<String> {
        self.bells().keys().cloned().collect()
    }

    fn ring(&self, name: &str) {
        if let Some(bell) = self.bells().get(name) {
            bell.send_modify(|rung| *rung += 1);
        }
    }
}

impl Bells {
    pub(crate) fn new(servers: Arc<Servers>) -> Self {
        Self { shared: Arc::default(), servers, task: Mutex::default() }
    }

    /// The bell of a queue. The connection is made when first needed; until it is there nobody rings.
    pub(crate) fn listen(&self, name: &str) -> watch::Receiver<u64> {
        let receiver = {
            let mut bells = self.shared.bells();
            if let Some(bell) = bells.get(name) {
                return bell.subscribe();
            }
            let (bell, receiver) = watch::channel(0);
            bells.insert(name.to_owned(), bell);
            receiver
        };
        self.shared.more.notify_one();
        self.keep_listening();
        receiver
    }

    /// Listens anew where the runtime of who listened has ended.
    fn keep_listening(&self) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.as_ref().is_none_or(AbortHandle::is_finished) {
            *task = Some(tokio::spawn(run(self.shared.clone(), self.servers.clone())).abort_handle());
        }
    }

    /// Whether the server will ring. Where it will not, that is being mended.
    pub(crate) fn listening(&self) -> bool {
        let listening = self.shared.listening.load(Ordering::Acquire);
        if !listening {
            self.keep_listening();
        }
        listening
    }

    /// Lets all who wait look again.
    pub(crate) fn ring_all(&self) {
        self.shared.names().iter().for_each(|name| self.shared.ring(name));
    }

    /// Ends the connection.
    pub(crate) fn close(&self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
        self.shared.listening.store(false, Ordering::Release);
    }
}

impl Drop for Bells {
    fn drop(&mut self) {
        self.close();
    }
}

/// Says that nobody listens any more, whatever the reason.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.listening.store(false, Ordering::Release);
        // Who rests counts on being rung: let them look, and then look more often.
        self.0.names().iter().for_each(|name| self.0.ring(name));
    }
}

async fn run(shared: Arc<Shared>, servers: Arc<Servers>) {
    let mut pause = FIRST_PAUSE;
    loop {
        if listen(&shared, &servers).await {
            pause = FIRST_PAUSE;
        }
        servers.doubt();
        // What broke here may be broken there too, and nobody may ask there for long.
        for node in servers.masters() {
            tokio::spawn(async move { node.watch().await });
        }
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Listens until the connection breaks. Says whether it could.
async fn listen(shared: &Shared, servers: &Servers) -> bool {
    // An error means an old map: then what it says is tried.
    let _ = servers.refresh().await;
    let Some(address) = fastrand::choice(servers.masters()).map(|node| node.address.clone()) else { return false };
    let (rung, mut pushed) = unbounded_channel();
    let mut link = match servers.dial().bells(&address, rung).await {
        Ok(link) => link,
        Err(error) => {
            tracing::debug!(server = %address, %error, "cannot listen");
            return false;
        }
    };
    let _listening = Ended(shared);
    let (mut asked, mut listened) = (Vec::new(), false);
    let ended = loop {
        if let Err(error) = subscribe(shared, &mut link, &mut asked).await {
            break error;
        }
        shared.listening.store(true, Ordering::Release);
        listened = true;
        match attend(shared, servers, &mut pushed).await {
            Next::Subscribe => {}
            Next::Ping => {
                // Requests may rest as long as bells do, and a connection that is gone must be known before the next one.
                let masters = servers.masters();
                if masters.iter().all(|node| node.address != address) {
                    break "it has no queues any more".to_owned();
                }
                for node in masters {
                    tokio::spawn(async move { node.watch().await });
                }
                let ping = cmd("PING");
                let sign = link.connection.send_packed_command(&ping);
                match tokio::time::timeout(servers.dial().config.liveness, sign).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => break error.to_string(),
                    Err(_) => break "no sign of life".to_owned(),
                }
            }
            Next::Broken => break "the connection broke".to_owned(),
        }
    };
    if listened {
        tracing::debug!(server = %address, ended, "no longer listening");
    } else {
        tracing::warn!(server = %address, error = ended, "cannot listen; workers look five times a second instead of being rung");
    }
    listened
}

/// Asks for the bells that are new. Rings them: what happened before is not pushed.
async fn subscribe(shared: &Shared, link: &mut Link, asked: &mut Vec<String>) -> Result<(), String> {
    let new: Vec<String> = shared.names().into_iter().filter(|name| !asked.contains(name)).collect();
    if new.is_empty() {
        return Ok(());
    }
    link.connection.subscribe(&new).await.map_err(|e| e.to_string())?;
    new.iter().for_each(|name| shared.ring(name));
    asked.extend(new);
    Ok(())
}

enum Next {
    Subscribe,
    Ping,
    Broken,
}

async fn attend(shared: &Shared, servers: &Servers, pushed: &mut UnboundedReceiver<PushInfo>) -> Next {
    let quiet = tokio::time::sleep(servers.dial().config.liveness);
    tokio::pin!(quiet);
    loop {
        tokio::select! {
            push = pushed.recv() => match push {
                Some(PushInfo { kind: PushKind::Message, data }) => {
                    if let Some(Value::BulkString(name)) = data.first() {
                        shared.ring(&String::from_utf8_lossy(name));
                    }
                }
                Some(PushInfo { kind: PushKind::Disconnection, .. }) | None => return Next::Broken,
                Some(_) => {}
            },
            () = shared.more.notified() => return Next::Subscribe,
            () = &mut quiet => return Next::Ping,
        }
    }
}
