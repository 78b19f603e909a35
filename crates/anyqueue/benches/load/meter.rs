//! What a process has used, as proc(5) tells it.

/// Seconds of CPU of this process, user and system.
pub(crate) fn cpu() -> f64 {
    cpu_of(std::process::id())
}

/// Seconds of CPU of a process, user and system.
pub(crate) fn cpu_of(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("proc is mounted, and the process lives");
    let after_name = stat.rsplit(") ").next().expect("there is a name");
    // Fields 14 and 15, in clock ticks of a hundredth of a second.
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("a number")).sum();
    ticks as f64 / 100.0
}

fn status(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("the key is there");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") / 1024
}

/// Megabytes held now.
pub(crate) fn rss_mb() -> u64 {
    status("VmRSS:")
}

/// Megabytes held at the most so far.
pub(crate) fn peak_rss_mb() -> u64 {
    status("VmHWM:")
}
