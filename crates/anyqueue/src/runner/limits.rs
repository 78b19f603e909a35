//! Limits, each of which ends the runner cleanly: idle cycles, time, memory. The number of tasks is counted by the slots.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::finish::Why;
use super::handle::RunnerHandle;
use super::shared::Shared;
use crate::settings::RunnerSettings;

/// One idle cycle: so long with nothing running and nothing delivered. Memory is looked at as often.
const CYCLE: Duration = Duration::from_secs(1);

pub(crate) async fn run(shared: Arc<Shared>, limits: RunnerSettings, handle: RunnerHandle) {
    if limits.max_time.is_none() && limits.memory_limit.is_none() && limits.max_idle_cycles.is_none() {
        return;
    }
    let started = shared.clock.now();
    loop {
        let over = limits.max_time.map_or(CYCLE, |time| (started + time).since(shared.clock.now()).min(CYCLE));
        shared.clock.sleep_until(shared.clock.now() + over).await;
        if let Some(reached) = reached(&shared, &limits, shared.clock.now().since(started)) {
            let running = shared.state().running;
            if running > 0 {
                tracing::info!(running, "stopping at {reached}: running handlers finish");
            }
            handle.stop_because(Why::Limit(reached));
            return;
        }
    }
}

fn reached(shared: &Shared, limits: &RunnerSettings, elapsed: Duration) -> Option<String> {
    if let Some(time) = limits.max_time.filter(|time| elapsed >= *time) {
        return Some(format!("its time limit of {}", anyqueue_core::time::show(time)));
    }
    if let (Some(limit), Some(used)) = (limits.memory_limit, resident_bytes())
        && used > limit
    {
        return Some(format!("its memory limit: {used} bytes are in use, {limit} are allowed"));
    }
    let cycles = limits.max_idle_cycles?;
    let state = shared.state();
    let idle = state.running + state.buffered + state.unread == 0;
    let counter = &shared.counters.idle_cycles;
    if !idle {
        counter.store(0, Ordering::Relaxed);
    } else if counter.fetch_add(1, Ordering::Relaxed) + 1 >= cycles {
        return Some(format!("{cycles} idle cycles of {}", anyqueue_core::time::show(CYCLE)));
    }
    None
}

/// The memory that this process holds, in bytes (`VmRSS` of `/proc/self/status`, proc(5)).
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim_end().parse().ok()?;
    Some(kibibytes * 1024)
}
