//! Claims whose answer got lost: the server may have carried them out, and then nobody has what they took.
//!
//! Each is looked for among the leases, in steps, once the server can be reached again, and what it took is given back
//! uncounted. Nothing is written for that in advance: a claim that is answered costs nothing.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyqueue_core::{Result, TaskId, time};
use redis::{cmd, from_redis_value};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::broker::Shared;
use crate::claim::{Busy, return_leases};
use crate::error::strange;
use crate::layout::{Keys, Lease, claims_of, number};

/// Leases that one step looks at.
const STEP: usize = 1000;
/// The first pause after a try that failed; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The lost claims of one consumer, and the numbers of its claims.
#[derive(Debug)]
pub(crate) struct Orphans {
    keys: Arc<Keys>,
    /// What the numbers of this consumer's claims begin with.
    consumer: u32,
    claims: AtomicU32,
    lost: Mutex<Lost>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Lost {
    claims: Vec<Claim>,
    seeker: Option<AbortHandle>,
}

#[derive(Debug)]
struct Claim {
    number: u64,
    /// It asked for a single task.
    single: bool,
    /// Until its first look is over: who closes the broker waits for that.
    busy: Option<Busy>,
    /// When it was first looked for in vain. The system may deliver a request late, though nobody waits for its answer.
    looked: Option<Instant>,
}

impl Orphans {
    /// Numbers are random: a server that restarts with older data must not see one again.
    pub(crate) fn new(keys: Arc<Keys>) -> Self {
        let (consumer, first) = (fastrand::u32(..), fastrand::u32(..));
        Self { keys, consumer, claims: AtomicU32::new(first), lost: Mutex::default(), more: Notify::new() }
    }

    /// The number of a new claim.
    pub(crate) fn next_claim(&self) -> u64 {
        (u64::from(self.consumer) << 32) | u64::from(self.claims.fetch_add(1, Ordering::Relaxed))
    }

    fn lost(&self) -> MutexGuard<'_, Lost> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a claim looked for, in the background.
    pub(crate) fn add(self: &Arc<Self>, number: u64, single: bool, shared: &Arc<Shared>) {
        let mut lost = self.lost();
        lost.claims.push(Claim { number, single, busy: Some(Busy::new(shared)), looked: None });
        if lost.seeker.as_ref().is_none_or(AbortHandle::is_finished) {
            lost.seeker = Some(tokio::spawn(seek(self.clone(), Arc::downgrade(shared))).abort_handle());
        }
        self.more.notify_one();
    }

    /// What to look for; where that is nothing, nobody looks any more.
    fn wanted(&self) -> Vec<u64> {
        let mut lost = self.lost();
        if lost.claims.is_empty() {
            lost.seeker = None;
        }
        lost.claims.iter().map(|claim| claim.number).collect()
    }

    /// A look is over, whatever it brought.
    fn tried(&self, wanted: &[u64]) {
        let tried = |claim: &&mut Claim| wanted.contains(&claim.number);
        self.lost().claims.iter_mut().filter(tried).for_each(|claim| claim.busy = None);
    }

    fn was_single(&self, number: u64) -> bool {
        self.lost().claims.iter().any(|claim| claim.number == number && claim.single)
    }

    /// Strikes off what was found, and what was looked for twice with this time in between.
    fn looked(&self, wanted: &[u64], found: &[u64], twice: Duration) {
        self.lost().claims.retain_mut(|claim| {
            let first = match claim.looked {
                _ if !wanted.contains(&claim.number) => return true,
                Some(first) => first,
                None => *claim.looked.insert(Instant::now()),
            };
            !found.contains(&claim.number) && first.elapsed() < twice
        });
    }

    /// Says which task it is that does not arrive, although it was asked for alone.
    async fn name(&self, shared: &Shared, lease: &Lease) {
        let mut question = cmd("HSTRLEN");
        question.arg(self.keys.tasks()).arg(&lease[49..]);
        let bytes = shared.servers.command(&self.keys, &question).await.ok().and_then(|size| from_redis_value::<u64>(size).ok());
        if let (Ok(id), Some(bytes)) = (lease[49..].try_into().map(TaskId::from_bytes), bytes) {
            let (queue, limit) = (self.keys.bell(), time::show(shared.config.timeout));
            tracing::warn!(queue, %id, bytes, limit, "a task asked for alone did not arrive in time");
        }
    }

    /// Looks through all leases once and gives back. Says whose they were.
    async fn give_back(&self, shared: &Arc<Shared>, wanted: &[u64]) -> Result<Vec<u64>> {
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        loop {
            let mut walk = cmd("ZSCAN");
            walk.arg(self.keys.reserved()).arg(&cursor).arg("MATCH").arg(claims_of(self.consumer)).arg("COUNT").arg(STEP);
            let answer = shared.servers.command(&self.keys, &walk).await?;
            let (next, pairs) = from_redis_value::<(String, Vec<Vec<u8>>)>(answer).map_err(|_| strange("ZSCAN"))?;
            let leases = pairs.chunks_exact(2).filter_map(|pair| Lease::try_from(pair[0].as_slice()).ok());
            let claim = |lease: &Lease| number(&lease[29..37]);
            let orphans: Vec<_> = leases.filter(|lease| wanted.contains(&claim(lease))).collect();
            found.extend(orphans.iter().map(claim));
            for lease in orphans.iter().filter(|lease| self.was_single(claim(lease))) {
                self.name(shared, lease).await;
            }
            return_leases(shared, &self.keys, &orphans).await?;
            if next == "0" {
                return Ok(found);
            }
            cursor = next;
        }
    }
}

/// Looks until nothing is lost, or nobody uses the broker any more.
async fn seek(orphans: Arc<Orphans>, shared: Weak<Shared>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let wanted = orphans.wanted();
        let Some(shared) = shared.upgrade().filter(|_| !wanted.is_empty()) else { return };
        let (timeout, queue) = (shared.config.timeout, orphans.keys.bell());
        let answer = orphans.give_back(&shared, &wanted).await;
        orphans.tried(&wanted);
        if shared.check().is_err() {
            return;
        }
        // Whoever looks is no reason for the broker to live.
        drop(shared);
        match answer {
            Ok(found) => {
                if !found.is_empty() {
                    tracing::info!(queue, tasks = found.len(), "gave back what was claimed over a connection that broke");
                }
                orphans.looked(&wanted, &found, timeout);
                pause = FIRST_PAUSE;
                if !orphans.lost().claims.is_empty() {
                    // Also when one was added before: then it is looked for at once.
                    let _ = tokio::time::timeout(timeout, orphans.more.notified()).await;
                }
            }
            Err(error) => {
                tracing::debug!(queue, %error, "cannot look for lost claims yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
