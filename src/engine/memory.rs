//! How much memory this process may still take, for the check before a model is loaded.

/// Bytes that can still be used: the machine's available memory, or what the control group leaves. `None` where the
/// operating system does not say.
pub fn available() -> Option<u64> {
    let machine = meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
    Some(control_group().map_or(machine, |left| left.min(machine)))
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn meminfo(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|k| k * 1024)
}

/// What a memory limit of the control group (version 2) leaves; page cache counts as free, since it is given back.
fn control_group() -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let limit: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let cache = read("memory.stat")
        .and_then(|s| s.lines().find_map(|l| l.strip_prefix("inactive_file ")).and_then(|n| n.trim().parse().ok()))
        .unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

/// Bytes for people.
pub fn human(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_available_line() {
        assert_eq!(meminfo("MemTotal:  9 kB\nMemAvailable:   12 kB\n"), Some(12 * 1024));
        assert_eq!(meminfo("MemTotal:  9 kB\n"), None);
    }
}
