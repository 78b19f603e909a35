//! The requests that are made of SQS: counted, tried again where that is safe, and with errors of ours.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyqueue_core::{Clock, Effect, Error, ErrorKind, Result};
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{Credentials, StalledStreamProtectionConfig};
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, MessageSystemAttributeName, QueueAttributeName,
    SendMessageBatchRequestEntry,
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

use tokio::runtime::Handle;

use crate::config::Config;
use crate::error;
use crate::message::Arrived;
use crate::skew::Dated;
use crate::slip::ATTRIBUTE;

/// Items of one request (`TooManyEntriesInBatchRequest` above it).
pub(crate) const BATCH: usize = 10;
/// What an answer may take longer than the wait that was asked for.
const MARGIN: Duration = Duration::from_secs(5);

/// An idle connection is not used any more after this time: it may have died without a word.
const IDLE: Duration = Duration::from_secs(10);

/// Whether a request may be made twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// Twice is as good as once.
    Safe,
    /// Only if it is certain that nothing has happened.
    Unsafe,
}

/// SQS as a client sees it.
#[derive(Debug)]
pub(crate) struct Api {
    client: Client,
    /// The same, more patient: it waits for tasks.
    waiting: Client,
    clock: Arc<dyn Clock>,
    /// Where connections live, whoever needs them first: another runtime may be blocked, or end.
    runtime: Handle,
    timeout: Duration,
    /// Named by errors.
    address: String,
    /// Requests that were answered.
    pub(crate) answered: AtomicU64,
    /// Requests under way; each has a connection.
    pub(crate) open: AtomicU64,
    /// How often a connection broke.
    pub(crate) broken: AtomicU64,
}

impl Api {
    /// Finds region and credentials the way the SDK does: settings, environment, profile, web identity, container, machine.
    pub(crate) async fn new(config: &Config, clock: Arc<dyn Clock>) -> Result<Self> {
        let http = aws_smithy_http_client::Builder::new().pool_idle_timeout(IDLE);
        let http = http.tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http);
        if let Some(region) = &config.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(profile) = &config.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(login) = &config.login {
            loader = loader.credentials_provider(Credentials::new(&login.key, &login.secret, None, None, "queue.toml"));
        }
        if let Some(endpoint) = &config.endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let found = loader.load().await;
        if found.region().is_none() {
            let text = "no region is known; write it into the URL, `sqs://eu-west-1`, or set AWS_REGION or a profile";
            return Err(Error::config(text));
        }
        let client = |patience: Duration| {
            let timeouts = TimeoutConfig::builder()
                .connect_timeout(config.timeout.min(Duration::from_secs(3)))
                .operation_attempt_timeout(patience)
                .operation_timeout(patience);
            let settings = aws_sdk_sqs::config::Builder::from(&found)
                .retry_config(RetryConfig::disabled())
                .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
                .timeout_config(timeouts.build());
            Client::from_conf(settings.build())
        };
        Ok(Self {
            client: client(config.timeout),
            waiting: client(config.wait + MARGIN),
            clock,
            runtime: Handle::current(),
            timeout: config.timeout,
            address: config.endpoint.clone().unwrap_or_else(|| config.address.clone()),
            answered: AtomicU64::new(0),
            open: AtomicU64::new(0),
            broken: AtomicU64::new(0),
        })
    }

    /// Makes a request until it works, an error is final, or the time for it is up.
    async fn call<T, E, F>(&self, again: Again, request: impl Fn() -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>> + Send + 'static,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let end = self.clock.now() + self.timeout;
        let mut pause = Duration::from_millis(50);
        loop {
            let answer = {
                let _open = Counted::new(&self.open);
                if Handle::try_current().is_ok_and(|here| here.id() == self.runtime.id()) {
                    request().await
                } else {
                    match self.runtime.spawn(request()).await {
                        Ok(answer) => answer,
                        Err(_) => return Err(error::closed().effect_unknown()),
                    }
                }
            };
            let error = match answer {
                Ok(value) => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    return Ok(value);
                }
                Err(foreign) => match error::of(foreign) {
                    e if matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout) => e.with("server", &self.address),
                    e => e,
                },
            };
            let throttled = error.kind() == ErrorKind::Throttled;
            match error.kind() {
                ErrorKind::Unavailable | ErrorKind::Timeout => self.broken.fetch_add(1, Ordering::Relaxed),
                _ => self.answered.fetch_add(1, Ordering::Relaxed),
            };
            // A connection that had been idle may be found broken; who is not there at all, or does not answer, is the caller's business.
            let broke = error.kind() == ErrorKind::Unavailable && error.effect() == Effect::Unknown && again == Again::Safe;
            let late = pause > Duration::from_millis(if throttled { 6400 } else { 200 });
            if !(throttled || broke) || late || self.clock.now() + pause >= end {
                return Err(error);
            }
            self.clock.sleep_until(self.clock.now() + pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause *= 2;
        }
    }

    /// The URL of a queue; `None` if there is none of this name.
    pub(crate) async fn url(&self, name: &str) -> Result<Option<Arc<str>>> {
        match self.call(Again::Safe, || self.client.get_queue_url().queue_name(name).send()).await {
            Ok(found) => Ok(found.queue_url().map(Into::into)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e.with("name", name)),
        }
    }

    pub(crate) async fn create(&self, name: &str, attributes: &[(QueueAttributeName, &str)]) -> Result<Arc<str>> {
        let attributes: HashMap<_, _> = attributes.iter().map(|(key, value)| (key.clone(), (*value).to_owned())).collect();
        let request = || self.client.create_queue().queue_name(name).set_attributes(Some(attributes.clone())).send();
        let made = self.call(Again::Safe, request).await.map_err(|e| e.with("name", name))?;
        made.queue_url().map(Into::into).ok_or_else(error::unanswered)
    }

    pub(crate) async fn attributes(&self, url: &str) -> Result<HashMap<QueueAttributeName, String>> {
        let request = || self.client.get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::All).send();
        Ok(self.call(Again::Safe, request).await?.attributes.unwrap_or_default())
    }

    pub(crate) async fn tags(&self, url: &str) -> Result<HashMap<String, String>> {
        let answer = self.call(Again::Safe, || self.client.list_queue_tags().queue_url(url).send()).await?;
        Ok(answer.tags.unwrap_or_default())
    }

    /// What SQS says is the time, in milliseconds since 1970.
    pub(crate) async fn date(&self, url: &str) -> Result<Option<i64>> {
        let dated = Dated::default();
        let request = || self.client.list_queue_tags().queue_url(url).customize().interceptor(dated.clone()).send();
        match self.call(Again::Safe, request).await {
            Err(e) if e.kind() != ErrorKind::Denied => Err(e),
            _ => Ok(dated.get()),
        }
    }

    pub(crate) async fn tag(&self, url: &str, key: &str, value: &str) -> Result<()> {
        self.call(Again::Safe, || self.client.tag_queue().queue_url(url).tags(key, value).send()).await.map(drop)
    }

    pub(crate) async fn untag(&self, url: &str, key: &str) -> Result<()> {
        self.call(Again::Safe, || self.client.untag_queue().queue_url(url).tag_keys(key).send()).await.map(drop)
    }

    pub(crate) async fn purge(&self, url: &str) -> Result<()> {
        self.call(Again::Safe, || self.client.purge_queue().queue_url(url).send()).await.map(drop)
    }

    /// Receives up to ten messages and hides them from others for `visibility` seconds.
    ///
    /// A receive whose answer is lost is not made again here: what it took comes back by itself.
    pub(crate) async fn receive(&self, url: &str, max: usize, visibility: u64, wait: Duration) -> Result<Vec<Arrived>> {
        let client = if wait.is_zero() { &self.client } else { &self.waiting };
        let request = || {
            client
                .receive_message()
                .queue_url(url)
                .max_number_of_messages(max.clamp(1, BATCH) as i32)
                .visibility_timeout(visibility as i32)
                .wait_time_seconds(wait.as_secs() as i32)
                .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
                .message_system_attribute_names(MessageSystemAttributeName::SentTimestamp)
                .message_system_attribute_names(MessageSystemAttributeName::MessageGroupId)
                .message_attribute_names(ATTRIBUTE)
                .send()
        };
        let answer = self.call(Again::Safe, request).await?;
        Ok(answer.messages.unwrap_or_default().into_iter().filter_map(Arrived::read).collect())
    }

    /// Sends up to ten messages: SQS's id of each.
    pub(crate) async fn send(&self, url: &str, entries: Vec<SendMessageBatchRequestEntry>) -> Vec<Result<Box<str>>> {
        let count = entries.len();
        let request = || self.client.send_message_batch().queue_url(url).set_entries(Some(entries.clone())).send();
        let mut answers = Answers::new(count);
        match self.call(Again::Unsafe, request).await {
            Ok(answer) => {
                answer.successful.into_iter().for_each(|one| answers.set(&one.id, Ok(one.message_id.into())));
                answer.failed.iter().for_each(|one| answers.set(one.id(), Err(error::of_entry(one))));
                answers.finish()
            }
            Err(e) => (0..count).map(|_| Err(e.duplicate())).collect(),
        }
    }

    /// Deletes up to ten messages.
    pub(crate) async fn delete(&self, url: &str, handles: &[Arc<str>]) -> Vec<Result<()>> {
        let entry = |(at, handle): (usize, &Arc<str>)| {
            DeleteMessageBatchRequestEntry::builder().id(at.to_string()).receipt_handle(&**handle).build()
        };
        let entries: Vec<_> = handles.iter().enumerate().filter_map(|item| entry(item).ok()).collect();
        let request = || self.client.delete_message_batch().queue_url(url).set_entries(Some(entries.clone())).send();
        let mut answers = Answers::new(handles.len());
        match self.call(Again::Safe, request).await {
            Ok(answer) => {
                answer.successful.into_iter().for_each(|one| answers.set(&one.id, Ok(())));
                answer.failed.iter().for_each(|one| answers.set(one.id(), Err(error::of_entry(one))));
                answers.finish()
            }
            Err(e) => handles.iter().map(|_| Err(e.duplicate())).collect(),
        }
    }

    /// Hides up to ten messages for so many seconds each, from now.
    pub(crate) async fn hide(&self, url: &str, items: &[(Arc<str>, u64)]) -> Vec<Result<()>> {
        let entry = |(at, (handle, seconds)): (usize, &(Arc<str>, u64))| {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder().id(at.to_string()).receipt_handle(&**handle);
            entry.visibility_timeout(*seconds as i32).build()
        };
        let entries: Vec<_> = items.iter().enumerate().filter_map(|item| entry(item).ok()).collect();
        let request = || self.client.change_message_visibility_batch().queue_url(url).set_entries(Some(entries.clone())).send();
        let mut answers = Answers::new(items.len());
        match self.call(Again::Safe, request).await {
            Ok(answer) => {
                answer.successful.into_iter().for_each(|one| answers.set(&one.id, Ok(())));
                answer.failed.iter().for_each(|one| answers.set(one.id(), Err(error::of_entry(one))));
                answers.finish()
            }
            Err(e) => items.iter().map(|_| Err(e.duplicate())).collect(),
        }
    }
}

/// One request under way, whether it ends or is dropped.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The answers to a batch, whose items are named by their places.
struct Answers<T>(Vec<Option<Result<T>>>);

impl<T> Answers<T> {
    fn new(count: usize) -> Self {
        Self((0..count).map(|_| None).collect())
    }

    fn set(&mut self, id: &str, answer: Result<T>) {
        if let Some(place) = id.parse::<usize>().ok().and_then(|at| self.0.get_mut(at)) {
            *place = Some(answer);
        }
    }

    fn finish(self) -> Vec<Result<T>> {
        self.0.into_iter().map(|answer| answer.unwrap_or_else(|| Err(error::unanswered()))).collect()
    }
}
