//! One session: registered tables, functions, parameters.

use crate::{
    storage::{location::Location, manifest::DataFile},
    udf::models::Models,
};
use datafusion::{common::ScalarValue, dataframe::DataFrame, prelude::SessionContext};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// What happens to a row whose model call failed.
#[derive(Clone)]
pub enum Failures {
    /// The value is NULL; the error goes to the sink. (Queries.)
    Null(FailureSink),
    /// The row leaves the stream; the error goes to the sink. (Stages, so that input = kept + dropped + failed.)
    Divert(FailureSink),
}
/// Receives (row id or empty, error).
pub type FailureSink = Arc<dyn Fn(String, String) + Send + Sync>;

/// Settings of a session.
pub struct SessionOptions {
    pub models: Arc<Models>,
    /// Values of `$name` in SQL.
    pub params: BTreeMap<String, ScalarValue>,
    pub failures: Failures,
    /// Parallel partitions of a plan; 0 means the number of cores.
    pub partitions: usize,
}

/// What a table name stands for.
pub enum TableSource {
    /// A finished table of ours: the files its manifest lists, in order.
    Managed { location: Location, table: String },
    /// Rows `rows` of one data file of a managed table (a fragment of a stage's input).
    Fragment { location: Location, table: String, file: DataFile, rows: Range<u64> },
    /// Parquet, JSONL(.gz|.zst) or CSV files by path or glob, local or s3://.
    Files(String),
}

/// A DataFusion session with the project's functions, rule and operator.
pub struct Session {
    ctx: SessionContext,
    params: BTreeMap<String, ScalarValue>,
}

impl Session {
    pub fn new(options: SessionOptions) -> anyhow::Result<Self> {
        let _ = options;
        todo!()
    }
    pub fn context(&self) -> &SessionContext {
        &self.ctx
    }
    /// Stub until branch operator is merged.
    pub fn tables(&self) -> Vec<String> {
        Vec::new()
    }
    /// Stub until branch operator is merged.
    pub fn functions(&self) -> &[String] {
        &[]
    }
    pub async fn register(&self, name: &str, source: TableSource) -> anyhow::Result<()> {
        let _ = (name, source, &self.params);
        todo!()
    }
    /// Plans one read-only statement with the parameters bound. Errors carry the position and list the known tables or models.
    pub async fn sql(&self, query: &str) -> anyhow::Result<DataFrame> {
        let _ = query;
        todo!()
    }
}

/// Stub until branch operator is merged.
pub fn row_local_table(plan: &datafusion::logical_expr::LogicalPlan) -> Option<String> {
    let _ = plan;
    None
}
