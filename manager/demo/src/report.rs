//! What a person sees of a demo: one line per step, bars on a terminal, a table at the end.
//!
//! Lines go to stdout, bars to stderr; without a terminal there are only lines.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use ankole_api::size::human;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::trouble::{Result, Stop};

/// A step that is shorter gets no bar.
const BAR_AFTER: Duration = Duration::from_secs(1);

/// What a step did.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// That went through the part the step is about; 0 if it isn't about bytes.
    pub(super) bytes: u64,
    /// In a few words.
    pub(super) remark: String,
}

impl Done {
    pub(super) fn bytes(bytes: u64, remark: impl Into<String>) -> Self {
        Self { bytes, remark: remark.into() }
    }
    pub(super) fn remark(remark: impl Into<String>) -> Self {
        Self::bytes(0, remark)
    }
}

struct Row {
    title: &'static str,
    took: Duration,
    done: Done,
}

pub(super) struct Reporter {
    stop: Stop,
    bars: bool,
    lines: bool,
    rows: RefCell<Vec<Row>>,
}

impl Reporter {
    pub(super) fn new(stop: Stop) -> Self {
        Self { stop, bars: io::stderr().is_terminal(), lines: true, rows: RefCell::default() }
    }

    #[cfg(test)]
    pub(super) fn quiet() -> Self {
        Self { stop: Stop::default(), bars: false, lines: false, rows: RefCell::default() }
    }

    /// Whoever reads may have gone; that doesn't end the demo.
    pub(super) fn say(&self, text: &str) {
        if self.lines {
            let mut out = io::stdout().lock();
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        }
    }

    /// The measure of how far a step is; `total_bytes` may be an estimate.
    pub(super) fn progress(&self, title: &'static str, total_bytes: u64) -> Progress<'_> {
        let bar = ProgressBar::with_draw_target(Some(total_bytes), ProgressDrawTarget::hidden());
        let shape = "{msg:32} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}";
        let style = ProgressStyle::with_template(shape);
        let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(title);
        let now = Instant::now();
        Progress { reporter: self, bar, begun: now, moved: Cell::new(now), shown: Cell::new(false) }
    }

    /// Runs one step and tells how it went.
    pub(super) fn run(
        &self,
        number: (usize, usize),
        title: &'static str,
        step: impl FnOnce(&Progress<'_>) -> Result<Done>,
    ) -> Result<()> {
        self.stop.check()?;
        let begun = Instant::now();
        let progress = self.progress(title, 0);
        let outcome = step(&progress);
        progress.bar.finish_and_clear();
        let row = Row { title, took: begun.elapsed(), done: outcome? };
        let [took, bytes, rate] = row.figures();
        let (number, of) = number;
        let remark = &row.done.remark;
        let line =
            format!("{number:>2}/{of} {title:<32} {took:>8} {bytes:>11} {rate:>13}  {remark}");
        self.say(line.trim_end());
        self.rows.borrow_mut().push(row);
        Ok(())
    }

    /// The steps in the order of what they cost.
    pub(super) fn table(&self) {
        let rows = self.rows.borrow();
        let total: Duration = rows.iter().map(|row| row.took).sum();
        self.say(&format!(
            "\n{:<32} {:>8} {:>6} {:>11} {:>13}",
            "STEP", "TIME", "PART", "BYTES", "RATE"
        ));
        let mut ordered: Vec<&Row> = rows.iter().collect();
        ordered.sort_by_key(|row| std::cmp::Reverse(row.took));
        for row in ordered {
            let [took, bytes, rate] = row.figures();
            let part = 100.0 * row.took.as_secs_f64() / total.as_secs_f64().max(1e-9);
            let line = format!("{:<32} {took:>8} {part:>5.0}% {bytes:>11} {rate:>13}", row.title);
            self.say(line.trim_end());
        }
        self.say(&format!("{:<32} {:>8}", "total", seconds(total)));
    }
}

impl Row {
    fn figures(&self) -> [String; 3] {
        if self.done.bytes == 0 {
            return [seconds(self.took), String::new(), String::new()];
        }
        let rate = self.done.bytes as f64 / self.took.as_secs_f64().max(1e-9);
        [seconds(self.took), human(self.done.bytes), format!("{}/s", human(rate as u64))]
    }
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

pub(super) struct Progress<'a> {
    reporter: &'a Reporter,
    bar: ProgressBar,
    begun: Instant,
    moved: Cell<Instant>,
    shown: Cell<bool>,
}

impl Progress<'_> {
    pub(super) fn expect(&self, total_bytes: u64) {
        self.bar.set_length(total_bytes);
    }

    /// An error when the demo shall end, so that every loop which tells how far it is ends too.
    pub(super) fn advance(&self, bytes: u64) -> Result<()> {
        self.set(self.bar.position() + bytes)
    }

    pub(super) fn set(&self, done_bytes: u64) -> Result<()> {
        if done_bytes != self.bar.position() {
            self.moved.set(Instant::now());
        }
        self.bar.set_position(done_bytes);
        if self.reporter.bars && !self.shown.get() && self.begun.elapsed() > BAR_AFTER {
            self.shown.set(true);
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.reporter.stop.check()
    }

    /// Since it went on for the last time.
    pub(super) fn idle(&self) -> Duration {
        self.moved.get().elapsed()
    }

    pub(super) fn stop(&self) -> &Stop {
        &self.reporter.stop
    }

    /// For a part of the step that is small, or of another kind.
    pub(super) fn silent(&self) -> Progress<'_> {
        Progress { shown: Cell::new(true), ..self.reporter.progress("", 0) }
    }
}
