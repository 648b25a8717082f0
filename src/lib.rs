//! repro: a dataflow engine that recycles web text for pretraining language models.
//!
//! ```text
//!     jsonl(.zst|.gz) / parquet, local or s3://
//!             │ ingest            stable id, source file + row, text
//!             ▼
//!         organic ──fasttext_score()──▶ organic_hq ────────┐
//!             │                                            │
//!             │ rephrase()   ◀── rephraser ◀── sft, grpo   │      (grpo: rollouts scored by repro_reward)
//!             ▼                                            │
//!         recycled ── repro_reward(): dataman() bertscore() structure_preserved() length_ratio()
//!             │                                            │
//!             ▼ select                                     ▼
//!         recycled_hq ───────────────────────────────▶ mixture ──pack──▶ packed ──pretrain──▶ model ──evaluate──▶ core
//! ```
//!
//! Every arrow is a SQL file in `sql/` or one trainer stage. Every box is a directory of Parquet files with a
//! manifest, or a model directory. Imports point down this list only; `tests/it/layers.rs` enforces it:
//!
//! | module | owns | must not know |
//! |---|---|---|
//! | [`cli`] | arguments, progress, exit codes | how a stage works |
//! | [`pipeline`] | YAML → spec → plan → run; the stages | terminals |
//! | [`catalog`] | DataFusion sessions: tables, functions, the model operator | pipelines |
//! | [`udf`] | one file per SQL function: Arrow in, Arrow out | files, stages |
//! | [`train`] | sft, grpo, pretraining: loss, optimiser, schedule, checkpoints | SQL |
//! | [`eval`] | the 22 tasks: prompts, few-shot draws, scores, means | SQL, tables |
//! | [`rewards`] | pure measures of a document or a pair | I/O, Arrow, SQL |
//! | [`engine`] | scheduler, KV cache, sampling, device threads | text, SQL, Arrow |
//! | [`models`] | one place per model family, weights | batching, text |
//! | [`text`] | tokenizer, chat template, chunking, line structure | models, SQL |
//! | [`storage`] | local and S3, atomic publish, manifests, model sources | SQL, models |

pub mod catalog;
pub mod cli;
pub mod engine;
pub mod eval;
pub mod models;
pub mod pipeline;
pub mod rewards;
pub mod storage;
pub mod text;
pub mod train;
pub mod udf;
