//! The end of reservations: by a worker, by giving back, or by the clock.

use std::collections::HashMap;
use std::sync::Weak;
use std::time::Duration;

use anyqueue_core::{Error, Result};
use futures::future::join_all;
use gearman::protocol::Packet;

use crate::guard::Sweep;
use crate::hub::Hub;
use crate::lease::Lease;
use crate::line::lease_number;
use crate::names::{Kind, Unique, guards};
use crate::packet::{complete, echo, lease as note};

/// How often leases are looked through for those that have ended.
const TICK: Duration = Duration::from_millis(100);

/// How long whoever looks at a guard lets us be in which a task is being made ready again by ourselves.
const ENDING: Duration = Duration::from_secs(20);

/// What has become of a reserved task whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nobody but us decides on it.
    Ours,
    /// Another job has its place.
    Taken,
    /// Somebody is just looking at its guard, or nobody answers.
    Open,
}

/// Ends leases whose time is over, for as long as the broker lives.
pub(crate) async fn run(hub: Weak<Hub>) {
    loop {
        let Some(strong) = hub.upgrade() else { return };
        if strong.is_closed() {
            return;
        }
        if strong.leases().is_empty() {
            // The broker may be dropped meanwhile.
            let waiting = strong.leased.notified();
            drop(tokio::time::timeout(Duration::from_secs(1), waiting).await);
            continue;
        }
        let until = strong.clock.now() + TICK;
        let sleeping = strong.clock.sleep_until(until);
        drop(strong);
        sleeping.await;
        let Some(strong) = hub.upgrade() else { return };
        let ended = strong.leases().ended(strong.clock.now());
        if !ended.is_empty() {
            strong.expire(ended).await;
        }
    }
}

impl Hub {
    /// Submits what follows each task, then removes the task: confirmed first, removed second.
    pub(crate) async fn replace(&self, items: Vec<(Lease, Packet)>) -> Vec<(Lease, Result<()>)> {
        let mut by_server: HashMap<usize, Vec<(Lease, Packet)>> = HashMap::new();
        for item in items {
            by_server.entry(item.0.server.place).or_default().push(item);
        }
        let on_server = async |items: Vec<(Lease, Packet)>| {
            let (leases, packets): (Vec<_>, Vec<_>) = items.into_iter().unzip();
            let put = self.put(&self.servers[leases[0].server.place], packets).await;
            let (copied, mut failed): (Vec<_>, Vec<_>) = leases.into_iter().zip(put).partition(|(_, put)| put.is_ok());
            let copied: Vec<_> = copied.into_iter().map(|(lease, _)| lease).collect();
            let finished = self.finish(&copied).await;
            let mut answers: Vec<_> = copied.into_iter().zip(finished).collect();
            answers.extend(failed.drain(..).map(|(lease, put)| (lease, put.map(drop))));
            answers
        };
        join_all(by_server.into_values().map(on_server)).await.into_iter().flatten().collect()
    }

    /// Removes tasks, and waits until the servers have done it.
    pub(crate) async fn finish(&self, leases: &[Lease]) -> Vec<Result<()>> {
        let mut by_link: HashMap<u64, Vec<usize>> = HashMap::new();
        for (at, lease) in leases.iter().enumerate() {
            by_link.entry(lease.link.number).or_default().push(at);
        }
        let on_link = async |places: &Vec<usize>| {
            // An end has no answer of its own unless it is refused, so each is followed by a question that has one.
            let packets = places.iter().flat_map(|at| [complete(&leases[*at].job.handle), echo()]).collect();
            match leases[places[0]].link.call(packets).await {
                Ok(answered) => Ok(answered.not_found),
                Err(e) if e.effect() == anyqueue_core::Effect::None => Err(Error::lease_lost().because(e)),
                Err(e) => Err(e),
            }
        };
        let mut answers: Vec<Result<()>> = leases.iter().map(|_| Ok(())).collect();
        for (places, answer) in by_link.values().zip(join_all(by_link.values().map(on_link)).await) {
            for (nth, at) in places.iter().enumerate() {
                match &answer {
                    Ok(not_found) if not_found.contains(&nth) => answers[*at] = Err(Error::lease_lost().effect_unknown()),
                    Ok(_) => {
                        if let Some(guard) = leases[*at].guard.clone() {
                            // It is looked at when it falls due if nobody cancels it.
                            drop(self.sweeping.send(Sweep::Guard(guard)));
                        }
                    }
                    Err(e) => answers[*at] = Err(e.duplicate()),
                }
            }
        }
        answers
    }

    /// Makes reserved tasks ready again with nothing counted.
    pub(crate) async fn give_back(&self, leases: Vec<Lease>) {
        let back = |lease: Lease| {
            let next = uncounted(&lease);
            self.followed_by(lease, &next)
        };
        for (lease, answer) in self.replace(leases.into_iter().map(back).collect()).await {
            if let Err(e) = answer {
                let (queue, error) = (lease.queue.name.as_str(), anyqueue_core::chain(&e));
                tracing::warn!(queue, error, "a task cannot be given back; it comes again when its connection or lease ends");
            }
        }
    }

    /// A reserved task, and the job that makes it ready again.
    fn followed_by(&self, lease: Lease, next: &Unique) -> (Lease, Packet) {
        let body = self.body_of_copy(&lease.queue, &lease.job, lease.unique.ttr);
        let packet = self.job(&lease.queue, next, Duration::ZERO, body);
        (lease, packet)
    }

    /// Makes tasks ready again whose workers said nothing in time.
    pub(crate) async fn expire(&self, leases: Vec<Lease>) {
        let fates = join_all(leases.iter().map(|lease| self.fate(lease))).await;
        let (mut mine, mut taken) = (Vec::new(), Vec::new());
        for (lease, fate) in leases.into_iter().zip(fates) {
            match fate {
                Fate::Ours => mine.push(lease),
                Fate::Taken => taken.push(lease),
                Fate::Open => drop(self.leases().grant(lease)),
            }
        }
        self.finish(&taken).await;
        let again = |lease: Lease| {
            let next = if lease.handed_out { lease.unique.after_loss() } else { uncounted(&lease) };
            self.followed_by(lease, &next)
        };
        for (lease, answer) in self.replace(mine.into_iter().map(again).collect()).await {
            if let Err(e) = answer {
                let (queue, error) = (lease.queue.name.as_str(), anyqueue_core::chain(&e));
                tracing::warn!(queue, error, "a task whose lease has ended cannot be made ready yet");
                if !lease.link.is_dead() {
                    self.leases().grant(lease);
                }
            }
        }
    }

    /// Who makes a task ready again whose time is over: we, or who looked at its guard and took us for frozen. A copy that
    /// both made would bring the task back after it was done. So first the lease is renewed, and only then it is asked
    /// for the guards: whoever gets one from then on sees that we live, and whoever had one before has it still, or is done.
    async fn fate(&self, lease: &Lease) -> Fate {
        if lease.guard.is_none() {
            return Fate::Ours;
        }
        let until = lease_number(self.second_after(ENDING));
        match lease.link.call(vec![note(&lease.job.handle, until, lease.number), echo()]).await {
            Ok(renewed) if renewed.not_found.is_empty() => self.guarded_by(lease).await,
            Ok(_) => Fate::Taken,
            Err(_) => Fate::Open,
        }
    }

    /// The same, of a lease that was just renewed.
    pub(crate) async fn guarded_by(&self, lease: &Lease) -> Fate {
        if lease.guard.is_none() {
            return Fate::Ours;
        }
        let (server, queue, job) = (&lease.server, &lease.queue, &lease.job);
        let asked = async {
            let guards = self.statuses(server, &guards(&queue.functions, job)).await?;
            if guards.iter().any(|guard| guard.running) {
                return Ok(Fate::Open);
            }
            // Guards are dropped for other reasons too, and one may be left of two: they do not say that there is a copy.
            let unguarded = guards.iter().all(|guard| !guard.known);
            let taken = self.is_replaced(server, queue, job).await? || (unguarded && self.is_cancelled(server, job).await?);
            Ok::<_, Error>(if taken { Fate::Taken } else { Fate::Ours })
        };
        // A server that was restarted has the task again, and knows nothing of us.
        asked.await.ok().filter(|_| !lease.link.is_dead()).unwrap_or(Fate::Open)
    }
}

fn uncounted(lease: &Lease) -> Unique {
    let own = &lease.unique;
    Unique::next(&lease.queue.functions, own.id, Kind::Ready, own.band, own.ttr, lease.lost())
}
