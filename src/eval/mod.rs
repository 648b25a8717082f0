//! Evaluation of causal language models on the paper's 22 tasks (reference section 8): the tasks, their files, the prompts,
//! the scores, the means. Knows nothing of tables or pipelines: the stage in [`crate::pipeline`] hands over file contents and
//! writes the results.
//!
//! ```text
//! tasks ─▶ read ─▶ draw ─▶ prompt ─▶ rows ─▶ batch ─▶ score ─▶ metrics
//! what     JSONL   few-    token     shared  forward  losses,  accuracy,
//! exists   items   shot    ids       prefix  passes   greedy   centered, Core
//! ```

mod batch;
pub mod draw;
pub mod metrics;
pub mod prompt;
pub mod read;
pub mod rows;
pub mod score;
pub mod tasks;
