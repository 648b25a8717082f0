//! Who makes an output: a small object in the output's directory that one run at a time holds, on local disk and S3 alike.
//!
//! A run takes the lease before it writes anything (of two one wins) and renews it every [`Terms::beat`]. One that finds it held asks
//! whether the holder lives: on this machine by its process, elsewhere by whether the object changes. One that has not changed for
//! [`Terms::life`], by the watcher's own clock, is taken over: clocks of two machines are never compared, and a dead run blocks nobody for
//! longer. A holder that finds its lease taken over (it was asleep, or cut off) stops.

use super::{
    conditional::{Version, delete_local},
    location::Location,
};
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, LazyLock, OnceLock},
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// The lease's name in the directory. Whoever sweeps the directory leaves it.
pub const LEASE: &str = "_lease.json";

/// How long is waited for what.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Between renewals.
    pub beat: Duration,
    /// Unchanged for so long, a lease is taken over. Well above `beat` and the time that a store's faults may cost.
    pub life: Duration,
    /// How long a run that lives on this machine is given to end.
    pub patience: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self { beat: Duration::from_secs(15), life: Duration::from_secs(90), patience: Duration::from_secs(3) }
    }
}

/// What the object says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    /// Random, one for each lease taken.
    owner: String,
    host: String,
    process: u32,
    /// Tells machines and containers apart: process numbers mean something within one only.
    machine: String,
    /// When the process began, in the kernel's ticks: numbers of processes are used again.
    started: u64,
    /// Milliseconds since 1970.
    since: u64,
    /// Milliseconds since 1970; changes with every renewal.
    renewed: u64,
}

impl Record {
    fn new() -> Self {
        let owner = format!("{:032x}", rand::random::<u128>());
        let Process { host, id, machine, started } = THIS.clone();
        Self { owner, host, process: id, machine, started, since: now(), renewed: now() }
    }

    fn bytes(&self) -> Result<Bytes> {
        Ok(serde_json::to_vec_pretty(self)?.into())
    }

    /// Whether the holder lives; None where that cannot be told from here.
    fn alive(&self) -> Option<bool> {
        let here = !self.machine.is_empty() && self.machine == THIS.machine;
        here.then(|| lives(self.process, self.started))
    }

    fn holder(&self) -> String {
        let since = i64::try_from(self.since).ok().and_then(chrono::DateTime::from_timestamp_millis);
        let since = since.map(|t| format!(", since {} UTC", t.format("%F %T"))).unwrap_or_default();
        format!("process {} on {}{since}", self.process, self.host)
    }
}

fn parse(bytes: &[u8]) -> Option<Record> {
    serde_json::from_slice(bytes).ok()
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A lease that this process holds, until [`Lease::release`]; dropped without it, it is given back as far as that can be done at once.
#[derive(Debug)]
pub struct Lease {
    directory: Location,
    owner: String,
    renewing: tokio::task::JoinHandle<()>,
    lost: Arc<OnceLock<String>>,
    released: bool,
}

impl Lease {
    /// Takes the lease of a directory, that of a dead run included; `stop` ends the wait for it. Once it is lost, `stop` is set.
    ///
    /// # Errors
    /// Another run holds it: who, since when, and what to do. The directory cannot be written. `stop` was set.
    pub async fn take(directory: &Location, terms: Terms, stop: &CancellationToken) -> Result<Self> {
        let record = Record::new();
        let version = take(directory, terms, stop, &record).await?;
        let (owner, lost) = (record.owner.clone(), Arc::new(OnceLock::new()));
        let renew =
            Renewal { directory: directory.clone(), record, version, lost: Arc::clone(&lost), stop: stop.clone() };
        let renewing = tokio::spawn(renew.go_on(terms.beat));
        Ok(Self { directory: directory.clone(), owner, renewing, lost, released: false })
    }

    /// Gives the lease back. If it had been lost, who has it.
    pub async fn release(mut self) -> Option<String> {
        self.released = true;
        self.renewing.abort();
        give_back(&self.directory, &self.owner).await;
        self.lost.get().cloned()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
        if self.released {
            return;
        }
        // Nothing waits for this; where it does not succeed, the lease runs out.
        if let Some(dir) = self.directory.local() {
            let own =
                || std::fs::read(dir.join(LEASE)).ok().filter(|b| parse(b).is_some_and(|r| r.owner == self.owner));
            // A renewal may be on its way.
            for _ in 0..3 {
                own().map(|bytes| delete_local(&dir, LEASE, &bytes).ok());
            }
            // An output that did not come about leaves no empty directory.
            std::fs::remove_dir(&dir).ok();
        } else if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (directory, owner) = (self.directory.clone(), self.owner.clone());
            runtime.spawn(async move { give_back(&directory, &owner).await });
        }
    }
}

async fn give_back(directory: &Location, owner: &str) {
    let work = async {
        // Until it is gone: a renewal that was on its way when it was called off may have changed it in between.
        while let Some((bytes, version)) = directory.read_version(LEASE).await?
            && parse(&bytes).is_some_and(|record| record.owner == owner)
        {
            directory.delete_version(LEASE, &version).await?;
        }
        // An output that did not come about leaves no empty directory.
        directory.local().map(|dir| std::fs::remove_dir(dir).ok());
        anyhow::Ok(())
    };
    if let Err(error) = work.await {
        tracing::warn!("{directory}: the lease could not be given back, it runs out: {error:#}");
    }
}

/// The version of the lease with `record` in it.
async fn take(directory: &Location, terms: Terms, stop: &CancellationToken, record: &Record) -> Result<Version> {
    let begun = Instant::now();
    let mut seen: Option<(Bytes, Instant)> = None;
    let wait = (terms.beat / 15).clamp(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        // A server that does not know conditional writes says yes to everybody: who was last is the one.
        if directory.create(LEASE, record.bytes()?).await?.is_some()
            && let Some((bytes, version)) = directory.read_version(LEASE).await?
            && parse(&bytes).is_some_and(|r| r.owner == record.owner)
        {
            return Ok(version);
        }
        let Some((bytes, version)) = directory.read_version(LEASE).await? else {
            tokio::time::sleep(wait).await; // given back just now
            continue;
        };
        let holder = parse(&bytes);
        if holder.as_ref().is_some_and(|holder| holder.owner == record.owner) {
            return Ok(version); // written by an attempt whose answer was lost
        }
        let alive = holder.as_ref().and_then(Record::alive);
        let (unchanged, waited) = match &seen {
            Some((before, at)) => (*before == bytes, at.elapsed()),
            None => (true, Duration::ZERO),
        };
        let dead = alive == Some(false) || (alive.is_none() && unchanged && waited >= terms.life);
        if dead {
            tracing::info!("{directory}: taking over from a run that ended: {}", named(holder.as_ref()));
            directory.replace(LEASE, record.bytes()?, &version).await?;
            continue; // reads who won
        }
        if !unchanged || (alive == Some(true) && begun.elapsed() >= terms.patience) {
            bail!(
                "another run is making {directory}: {}; wait for it or stop it, and run the same command again, or use another location",
                named(holder.as_ref())
            );
        }
        if seen.is_none() {
            if alive.is_none() {
                let life = terms.life.as_secs();
                tracing::info!(
                    "{directory}: held by {}; taken over in {life} s unless it lives",
                    named(holder.as_ref())
                );
            }
            seen = Some((bytes, Instant::now()));
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => bail!("stopped"),
        }
    }
}

fn named(record: Option<&Record>) -> String {
    record.map_or_else(|| format!("somebody whose {LEASE} cannot be read"), Record::holder)
}

/// Shows now and then that the holder lives.
struct Renewal {
    directory: Location,
    record: Record,
    version: Version,
    lost: Arc<OnceLock<String>>,
    stop: CancellationToken,
}

impl Renewal {
    async fn go_on(mut self, beat: Duration) {
        let mut warned = false;
        loop {
            tokio::time::sleep(beat).await;
            match self.once().await {
                Ok(None) => warned = false,
                Ok(Some(taker)) => {
                    let place = &self.directory;
                    let reason = format!("{place}: another run took over, this one had shown no sign of life: {taker}");
                    self.lost.set(reason).ok();
                    return self.stop.cancel();
                }
                Err(error) if !warned => {
                    tracing::warn!("{}: the lease could not be renewed, trying on: {error:#}", self.directory);
                    warned = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Renews; gives who holds the lease now, if it is another.
    async fn once(&mut self) -> Result<Option<String>> {
        self.record.renewed = now();
        if let Some(version) = self.directory.replace(LEASE, self.record.bytes()?, &self.version).await? {
            self.version = version;
            return Ok(None);
        }
        match self.directory.read_version(LEASE).await? {
            Some((bytes, version)) if parse(&bytes).is_some_and(|r| r.owner == self.record.owner) => {
                self.version = version; // written by an attempt whose answer was lost
                Ok(None)
            }
            Some((bytes, _)) => Ok(Some(named(parse(&bytes).as_ref()))),
            None => Ok(Some(format!("its {LEASE} was removed"))),
        }
    }
}

#[derive(Debug, Clone)]
struct Process {
    host: String,
    id: u32,
    machine: String,
    started: u64,
}

static THIS: LazyLock<Process> = LazyLock::new(|| {
    let id = std::process::id();
    let text = |path| std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default();
    let boot = text("/proc/sys/kernel/random/boot_id");
    // Containers of one machine number their processes each for itself.
    let space = std::fs::read_link("/proc/self/ns/pid").map(|p| p.display().to_string()).unwrap_or_default();
    let machine = if boot.is_empty() || space.is_empty() { String::new() } else { format!("{boot} {space}") };
    let started = stat(id).map_or(0, |(_, started)| started);
    Process { host: text("/proc/sys/kernel/hostname"), id, machine, started }
});

/// Whether a process of this machine that began at `started` is there and has not ended.
fn lives(process: u32, started: u64) -> bool {
    let Ok(id) = i32::try_from(process) else { return false };
    // SAFETY: signal 0 is not sent; the call only says whether the process exists.
    let exists = unsafe { libc::kill(id, 0) } == 0
        || std::io::Error::last_os_error().raw_os_error().is_some_and(|code| code != libc::ESRCH);
    // What another user runs may be hidden: then it exists, no more is known.
    exists && stat(process).is_none_or(|(state, begun)| !matches!(state, 'Z' | 'X') && begun == started)
}

/// State of a process and when it began, in ticks since the machine started.
fn stat(process: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in parentheses, may hold anything; the state is the first field after it, the start the twentieth.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().context("a number").ok()?))
}
