//! Evaluation of causal language models on the paper's 22 tasks (reference section 8): the tasks, their files, the prompts,
//! the scores, the means. Knows nothing of tables or pipelines: the stage in [`crate::pipeline`] hands over file contents and
//! writes the results.
//!
//! ```text
//! tasks ─▶ read ─▶ draw ─▶ prompt ─▶ rows ─▶ score ─▶ metrics
//! what     JSONL   few-    token     shared  losses,  accuracy,
//! exists   items   shot    ids       prefix  greedy   centered, Core
//! ```

pub mod draw;
pub mod metrics;
pub mod prompt;
pub mod read;
pub mod rows;
pub mod score;
pub mod tasks;
