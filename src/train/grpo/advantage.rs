//! Rewards of a step's completions to advantages (reference/repro.md section 3.4). Pure numbers.
//!
//! A_i = (r_i - mean of the group) / (std + 1e-4), std the sample standard deviation (n - 1) of the group or of the step.
//! A completion without a reward (its reward failed) has no part in means or deviations, and no advantage.

use serde::{Deserialize, Serialize};

/// Keeps the division finite, as TRL does.
const EPSILON: f64 = 1e-4;

/// What differences of reward are divided by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The deviation inside the group: the paper's (TRL: `true`).
    #[default]
    Group,
    /// The deviation over the whole step.
    Batch,
    /// Nothing (TRL: `false`).
    None,
}

impl<'de> Deserialize<'de> for ScaleRewards {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = ScaleRewards;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("group, batch, none, true (group) or false (none)")
            }
            fn visit_bool<E: serde::de::Error>(self, on: bool) -> Result<ScaleRewards, E> {
                Ok(if on { ScaleRewards::Group } else { ScaleRewards::None })
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ScaleRewards, E> {
                match text {
                    "group" => Ok(ScaleRewards::Group),
                    "batch" => Ok(ScaleRewards::Batch),
                    "none" => Ok(ScaleRewards::None),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Advantages of groups of `group` completions each, and how many groups had no spread (or fewer than two rewards).
pub fn advantages(rewards: &[Option<f64>], group: usize, scale: ScaleRewards) -> (Vec<Option<f64>>, usize) {
    let known: Vec<f64> = rewards.iter().flatten().copied().collect();
    let whole = deviation(&known);
    let mut out = Vec::with_capacity(rewards.len());
    let mut without_spread = 0;
    for group in rewards.chunks(group.max(1)) {
        let known: Vec<f64> = group.iter().flatten().copied().collect();
        let mean = mean(&known);
        let own = deviation(&known);
        // Equal rewards may differ in their last bits: sums of the same parts do not, but means do.
        without_spread += usize::from(own < 1e-9);
        let divisor = match scale {
            ScaleRewards::Group => own + EPSILON,
            ScaleRewards::Batch => whole + EPSILON,
            ScaleRewards::None => 1.0,
        };
        out.extend(group.iter().map(|reward| reward.map(|r| if own < 1e-9 { 0.0 } else { (r - mean) / divisor })));
    }
    (out, without_spread)
}

/// 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// Sample standard deviation; 0 of fewer than two values.
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let mean = mean(values);
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rewards: &[Option<f64>], group: usize, scale: ScaleRewards, wanted: &[Option<f64>], flat: usize) {
        let (got, without_spread) = advantages(rewards, group, scale);
        assert_eq!(without_spread, flat);
        assert_eq!(got.len(), wanted.len());
        for (a, b) in got.iter().zip(wanted) {
            match (a, b) {
                (Some(a), Some(b)) => assert!((a - b).abs() < 1e-9, "{got:?} is not {wanted:?}"),
                (a, b) => assert_eq!(a, b, "{got:?} is not {wanted:?}"),
            }
        }
    }

    /// Rewards 1, 2, 3: mean 2, sample deviation 1.
    #[test]
    fn by_hand() {
        let one = 1.0 / 1.0001;
        let all = [Some(1.), Some(2.), Some(3.), Some(5.), Some(5.), Some(5.)];
        check(&all, 3, ScaleRewards::Group, &[Some(-one), Some(0.), Some(one), Some(0.), Some(0.), Some(0.)], 1);
        check(&all, 3, ScaleRewards::None, &[Some(-1.), Some(0.), Some(1.), Some(0.), Some(0.), Some(0.)], 1);
        // deviation of 1, 2, 3, 5, 5, 5 about 3.5: (6.25 + 2.25 + 0.25 + 3 * 2.25) / 5 = 3.1
        let batch = 1.0 / (3.1f64.sqrt() + 1e-4);
        check(&all, 3, ScaleRewards::Batch, &[Some(-batch), Some(0.), Some(batch), Some(0.), Some(0.), Some(0.)], 1);
    }

    #[test]
    fn a_missing_reward_takes_no_part() {
        let one = 1.0 / (2f64.sqrt() + 1e-4);
        check(&[Some(1.), None, Some(3.)], 3, ScaleRewards::Group, &[Some(-one), None, Some(one)], 0);
        check(&[None, None, Some(3.)], 3, ScaleRewards::Group, &[None, None, Some(0.)], 1);
        check(&[None, None], 2, ScaleRewards::Batch, &[None, None], 1);
    }
}
