//! Learning rate as a function of where the run stands. Pure; knows nothing of tensors or files.

use serde::{Deserialize, Serialize};

/// Linear warm-up, then a half cosine down to a floor.
///
/// `rate(step, done) = warm(step) * (floor + (peak - floor) * (1 + cos(pi * done)) / 2)`, where `warm` rises from
/// `1 / warmup_steps` at step 0 to 1, and `done` in 0..=1 is the part of the budget that is used up. Steps, tokens and
/// time can all be the budget, so the cosine runs over `done`, not over steps (Loshchilov and Hutter 2017, eq. 5, without restarts).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Highest learning rate.
    pub peak: f64,
    /// Learning rate at the end.
    pub floor: f64,
    /// Steps of the linear warm-up; 0 for none.
    pub warmup_steps: u64,
}

impl Schedule {
    /// A rate that rises and then stays.
    pub fn constant(peak: f64, warmup_steps: u64) -> Self {
        Self { peak, floor: peak, warmup_steps }
    }

    /// The learning rate of step `step` (from 0) when `done` of the budget is used up before it.
    pub fn rate(&self, step: u64, done: f64) -> f64 {
        let warm = if step < self.warmup_steps { (step + 1) as f64 / self.warmup_steps as f64 } else { 1.0 };
        let cosine = (1.0 + (std::f64::consts::PI * done.clamp(0.0, 1.0)).cos()) / 2.0;
        warm * (self.floor + (self.peak - self.floor) * cosine)
    }
}

/// open_lm's schedule over a known number of steps: linear warm-up to the peak, then a half cosine over the remaining steps.
///
/// `rate(s) = peak (s + 1) / W` for s < W, else `floor + (peak - floor) (1 + cos(π (s - W) / (S - W))) / 2` (reference 7.2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WarmupCosine {
    /// Highest learning rate.
    pub peak: f64,
    /// Learning rate that the cosine falls to.
    pub floor: f64,
    /// Steps of the warm-up; 0 for none.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub steps: u64,
}

impl WarmupCosine {
    /// The learning rate of step `step`, from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let rest = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = ((step - self.warmup_steps) as f64 / rest).min(1.0);
        self.floor + (self.peak - self.floor) * (1.0 + (std::f64::consts::PI * done).cos()) / 2.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worked_by_hand() {
        let schedule = Schedule { peak: 1.0, floor: 0.1, warmup_steps: 4 };
        let check = |step, done, expected: f64| {
            let rate = schedule.rate(step, done);
            assert!((rate - expected).abs() < 1e-12, "step {step} done {done}: {rate} is not {expected}");
        };
        check(0, 0.0, 0.25);
        check(1, 0.0, 0.5);
        check(3, 0.0, 1.0);
        // half way down: cos(pi/2) = 0, so 0.1 + 0.9 / 2
        check(50, 0.5, 0.55);
        // a third: cos(pi/3) = 1/2, so 0.1 + 0.9 * 0.75
        check(50, 1.0 / 3.0, 0.775);
        check(50, 1.0, 0.1);
        check(50, 1.7, 0.1);
        // warm-up and cosine multiply
        check(1, 0.5, 0.275);
    }

    #[test]
    fn warm_up_then_cosine() {
        let schedule = WarmupCosine { peak: 1.0, floor: 0.1, warmup_steps: 4, steps: 16 };
        // (s + 1) / 4, then cosines of 0, 1/3, 1/2, 1 of the twelve steps that remain
        for (step, expected) in [(0, 0.25), (3, 1.0), (4, 1.0), (8, 0.775), (10, 0.55), (16, 0.1), (99, 0.1)] {
            let rate = schedule.rate(step);
            assert!((rate - expected).abs() < 1e-12, "step {step}: {rate} is not {expected}");
        }
    }

    #[test]
    fn constant_stays() {
        let schedule = Schedule::constant(0.005, 0);
        assert!((schedule.rate(0, 0.0) - 0.005).abs() < 1e-15);
        assert!((schedule.rate(900, 0.9) - 0.005).abs() < 1e-15);
    }
}
