//! From answers to figures: accuracy, centered accuracy, group means, Core (reference section 8.3). Pure.

use super::tasks::{Group, TASKS, Task};
use std::collections::BTreeMap;

/// What one item contributes.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// Its category, for the tasks that have some.
    pub category: Option<String>,
    /// Whether the model was right.
    pub correct: bool,
    /// Cross-entropy of the right continuation, in nats a token.
    pub gold_loss: f64,
}

/// The figures of a task.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// Items.
    pub n: usize,
    /// Share of right answers, 0 to 1; with categories, the unweighted mean over them.
    pub accuracy: f64,
    /// Mean cross-entropy of the right continuations: moves before accuracy does.
    pub gold_loss: f64,
}

/// None without items.
pub fn score(marks: &[Mark]) -> Option<Score> {
    let mut categories: BTreeMap<Option<&str>, (usize, usize)> = BTreeMap::new();
    for mark in marks {
        let (right, all) = categories.entry(mark.category.as_deref()).or_default();
        *right += usize::from(mark.correct);
        *all += 1;
    }
    let shares: Vec<f64> = categories.values().map(|(right, all)| *right as f64 / *all as f64).collect();
    let losses: Vec<f64> = marks.iter().map(|m| m.gold_loss).collect();
    Some(Score { n: marks.len(), accuracy: mean(&shares)?, gold_loss: mean(&losses)? })
}

/// `(accuracy − baseline) / (1 − baseline)`: 0 is guessing, 1 is perfect. All are shares, 0 to 1.
pub fn centered(accuracy: f64, baseline: f64) -> f64 {
    (accuracy - baseline) / (1.0 - baseline)
}

/// A mean of centered accuracies, and of how many tasks it is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mean {
    /// None if no task is there.
    pub centered: Option<f64>,
    /// Tasks that are there.
    pub tasks: usize,
    /// Tasks that it should be made of.
    pub of: usize,
}

/// Core: the unweighted mean over the 22 tasks, as far as they are there.
pub fn core(centered: &BTreeMap<&str, f64>) -> Mean {
    mean_of(centered, |task| task.core)
}

/// The mean of a group, without the task that is outside Core.
pub fn group(centered: &BTreeMap<&str, f64>, group: Group) -> Mean {
    mean_of(centered, |task| task.core && task.group == group)
}

fn mean_of(centered: &BTreeMap<&str, f64>, belongs: impl Fn(&Task) -> bool) -> Mean {
    let tasks: Vec<&str> = TASKS.iter().filter(|t| belongs(t)).map(|t| t.label).collect();
    let there: Vec<f64> = tasks.iter().filter_map(|label| centered.get(label).copied()).collect();
    Mean { centered: mean(&there), tasks: there.len(), of: tasks.len() }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(category: Option<&str>, correct: bool) -> Mark {
        Mark { category: category.map(str::to_owned), correct, gold_loss: if correct { 1.0 } else { 2.0 } }
    }

    #[test]
    fn categories_count_alike() {
        let plain = [mark(None, true), mark(None, false), mark(None, false), mark(None, false)];
        assert_eq!(score(&plain), Some(Score { n: 4, accuracy: 0.25, gold_loss: 1.75 }));
        // 1 of 1 and 0 of 3: the mean over categories is a half.
        let split = [mark(Some("a"), true), mark(Some("b"), false), mark(Some("b"), false), mark(Some("b"), false)];
        assert_eq!(score(&split).map(|s| s.accuracy), Some(0.5));
        assert_eq!(score(&[]), None);
    }

    /// By hand: language identification at 0.25 is 0.1749 over the first baseline and nothing over the second.
    #[test]
    fn centered_is_zero_at_the_baseline() {
        assert!((centered(0.25, 0.091) - 0.159 / 0.909).abs() < 1e-12);
        assert_eq!(centered(0.25, 0.25), 0.0);
        assert_eq!(centered(1.0, 0.62), 1.0);
        assert!((centered(0.5, 0.62) + 0.12 / 0.38).abs() < 1e-12);
    }

    #[test]
    fn means_say_of_how_many_tasks() {
        let some = BTreeMap::from([("copa", 0.2), ("piqa", 0.4), ("squad", 0.9), ("commonsense_qa", 1.0)]);
        assert_eq!(core(&some), Mean { centered: Some(0.5), tasks: 3, of: 22 });
        let commonsense = group(&some, Group::Commonsense);
        assert_eq!((commonsense.tasks, commonsense.of), (2, 3));
        assert!(commonsense.centered.is_some_and(|c| (c - 0.3).abs() < 1e-12));
        assert_eq!(group(&some, Group::World), Mean { centered: None, tasks: 0, of: 5 });
    }
}
