//! Progress of stages: bars on a terminal, otherwise a plain line every few seconds.

use super::output::{bytes, count, rate, seconds};
use crate::{pipeline::stage::Progress, storage::manifest::Manifest};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::{
    collections::HashMap,
    io::{self, IsTerminal, Write},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Time between two plain lines of a stage.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// All bars of the process, so that other output can go above them.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Runs `write` while no bar is on the screen.
pub fn above_bars<T>(write: impl FnOnce() -> T) -> T {
    BARS.suspend(write)
}

/// Log lines to stderr, above the bars.
pub struct LogWriter;
impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        above_bars(|| io::stderr().write_all(bytes)).map(|()| bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Progress for whoever reads stderr.
pub fn progress() -> Arc<dyn Progress> {
    let bars = io::stderr().is_terminal();
    Arc::new(Shown { bars, stages: Mutex::default() })
}

struct Shown {
    bars: bool,
    stages: Mutex<HashMap<String, Stage>>,
}

/// One stage on its way.
struct Stage {
    total: Option<u64>,
    former: u64,
    done: u64,
    unit: &'static str,
    note: String,
    begun: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Stage {
    /// `120 of 500 rows, 24 %, 3.1/s, 2 min 03 s left, 812 tok/s`
    fn text(&self, now: Instant) -> String {
        let amount = |n: u64| if self.unit == "bytes" { bytes(n) } else { count(n) };
        let unit = if self.unit == "bytes" { String::new() } else { format!(" {}", self.unit) };
        let mut parts = match self.total {
            Some(total) => {
                let share = (self.done * 100).checked_div(total).unwrap_or(100);
                vec![format!("{} of {}{unit}", amount(self.done), amount(total)), format!("{} %", share.min(100))]
            }
            None => vec![format!("{}{unit}", amount(self.done))],
        };
        let elapsed = now.duration_since(self.begun).as_secs_f64();
        let per_second = (self.done - self.former.min(self.done)) as f64 / elapsed.max(1e-9);
        if elapsed >= 0.5 && per_second > 0.0 {
            parts.push(if self.unit == "bytes" {
                format!("{}/s", bytes(per_second as u64))
            } else if per_second < 1.0 {
                // Steps of a training may take minutes.
                format!("{} each", seconds(1.0 / per_second))
            } else {
                format!("{}/s", rate(per_second))
            });
            if let Some(left) = self.total.map(|total| total.saturating_sub(self.done)).filter(|left| *left > 0) {
                parts.push(format!("{} left", seconds(left as f64 / per_second)));
            }
        }
        if !self.note.is_empty() {
            parts.push(self.note.clone());
        }
        parts.join(", ")
    }
}

fn bar(stage: &str, total: Option<u64>) -> ProgressBar {
    let template = if total.is_some() { "{prefix} [{bar:24}] {msg}" } else { "{prefix} {spinner} {msg}" };
    let style = ProgressStyle::with_template(template).expect("a constant template").progress_chars("=> ");
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    BARS.add(bar.with_style(style).with_prefix(format!("{stage:<16}")))
}

impl Shown {
    fn with<T>(&self, change: impl FnOnce(&mut HashMap<String, Stage>) -> T) -> T {
        change(&mut self.stages.lock().unwrap_or_else(PoisonError::into_inner))
    }
    fn line(text: &str) {
        // Nothing can be said where stderr is closed.
        above_bars(|| writeln!(io::stderr(), "{text}")).ok();
    }
}

impl Progress for Shown {
    fn begin(&self, stage: &str, total: Option<u64>, done: u64, unit: &'static str) {
        let now = Instant::now();
        let bar = self.bars.then(|| bar(stage, total));
        let state = Stage { total, former: done, done, unit, note: String::new(), begun: now, last_line: now, bar };
        if done > 0 {
            Self::line(&format!("{stage}: continues at {}", state.text(now)));
        } else if !self.bars {
            Self::line(&format!("{stage}: {}", state.text(now)));
        }
        let former = self.with(|stages| stages.insert(stage.to_owned(), state));
        if let Some(bar) = former.and_then(|former| former.bar) {
            bar.finish_and_clear();
        }
    }

    fn advance(&self, stage: &str, n: u64, note: &str) {
        let line = self.with(|stages| {
            let state = stages.get_mut(stage)?;
            let now = Instant::now();
            state.done += n;
            if !note.is_empty() {
                note.clone_into(&mut state.note);
            }
            if let Some(bar) = &state.bar {
                bar.set_position(state.done);
                bar.set_message(state.text(now));
                return None;
            }
            let due = now.duration_since(state.last_line) >= LINE_EVERY;
            due.then(|| {
                state.last_line = now;
                format!("{stage}: {}", state.text(now))
            })
        });
        if let Some(line) = line {
            Self::line(&line);
        }
    }

    fn end(&self, stage: &str, manifest: Option<&Manifest>) {
        let state = self.with(|stages| stages.remove(stage));
        if let Some(bar) = state.as_ref().and_then(|state| state.bar.as_ref()) {
            bar.finish_and_clear();
        }
        if let Some(Manifest { rows, cost, .. }) = manifest {
            let failed = if rows.failed > 0 { format!(", {} failed", count(rows.failed)) } else { String::new() };
            Self::line(&format!("{stage}: {} rows{failed} in {}", count(rows.kept), seconds(cost.wall_seconds)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let begun = Instant::now();
        let mut stage = Stage {
            total: Some(500),
            former: 100,
            done: 120,
            unit: "rows",
            note: "812 tok/s".into(),
            begun,
            last_line: begun,
            bar: None,
        };
        let later = begun + Duration::from_secs(10);
        assert_eq!(stage.text(later), "120 of 500 rows, 24 %, 2.0/s, 3 min 10 s left, 812 tok/s");
        assert!(
            stage.text(begun + Duration::from_secs(860)).contains(", 43.0 s each, 4 h 32 min left, "),
            "one every 43 s"
        );
        stage = Stage { total: None, former: 0, done: 5_000_000, unit: "bytes", note: String::new(), ..stage };
        assert_eq!(stage.text(later), "5.0 MB, 500.0 kB/s");
    }
}
