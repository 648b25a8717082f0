//! DataFusion sessions: tables, stores, functions, and the operator that runs model functions. Knows nothing of pipelines.

pub mod session;
