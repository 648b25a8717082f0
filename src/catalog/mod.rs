//! DataFusion sessions: tables, stores, functions, and the operator that runs model functions. Knows nothing of pipelines.

mod defer;
pub mod hoist;
mod memo;
pub mod model_exec;
pub mod model_node;
pub mod prune;
pub mod query;
pub mod row_local;
pub mod session;
mod tables;
mod text_files;
