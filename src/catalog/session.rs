//! One session: registered tables, functions, parameters.

pub use super::row_local::row_local_table;
use super::{
    hoist::HoistModelCalls,
    model_exec::ModelPlanner,
    prune::PruneModelCalls,
    query::{READ_ONLY, parse, sql_error, table_references},
    tables,
};
use crate::{
    storage::{location::Location, manifest::DataFile},
    udf::{self, ModelFunction, model_udf::ModelUdf, models::Models},
};
use anyhow::{Context, Result, bail};
use datafusion::{
    common::ScalarValue,
    dataframe::DataFrame,
    execution::{
        SessionStateBuilder,
        context::SQLOptions,
        memory_pool::{FairSpillPool, MemoryPool},
        runtime_env::RuntimeEnvBuilder,
    },
    logical_expr::LogicalPlan,
    optimizer::{Optimizer, OptimizerRule},
    prelude::{SessionConfig, SessionContext},
};
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, OnceLock},
};

/// Rows of a batch: documents are long, so fewer than DataFusion's 8192.
const BATCH_ROWS: usize = 2048;

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
    /// Models that functions may name.
    pub models: Arc<Models>,
    /// Values of `$name` in SQL. `$seed` is the models' seed unless given here.
    pub params: BTreeMap<String, ScalarValue>,
    /// Where failed rows go.
    pub failures: Failures,
    /// Parallel partitions of a plan; 0 means the number of cores. With 1, rows keep the order of their table.
    pub partitions: usize,
}

/// What a table name stands for.
pub enum TableSource {
    /// A finished table of ours: the files its manifest lists, in order.
    Managed {
        /// The pipeline's location.
        location: Location,
        /// The table's directory there.
        table: String,
    },
    /// Rows `rows` of one data file of a managed table (a fragment of a stage's input).
    Fragment {
        /// The pipeline's location.
        location: Location,
        /// The table's directory there.
        table: String,
        /// A file of the table's manifest.
        file: DataFile,
        /// Rows of that file.
        rows: Range<u64>,
    },
    /// Parquet, JSONL(.gz|.zst) or CSV files by path or glob, local or s3://; or the directory of a finished table.
    Files(String),
}

/// A DataFusion session with the project's functions, rule and operator.
pub struct Session {
    ctx: SessionContext,
    params: BTreeMap<String, ScalarValue>,
    functions: Vec<String>,
}

impl Session {
    /// A session with all functions and no tables.
    ///
    /// # Errors
    /// The runtime cannot be set up (no directory for temporary files).
    pub fn new(options: SessionOptions) -> Result<Self> {
        Self::with(options, udf::model_functions(), shared_memory())
    }

    /// As [`Self::new`], with other model functions and an own memory limit for sorts, joins and aggregates, which spill beyond it.
    pub fn with(
        options: SessionOptions,
        functions: Vec<Arc<dyn ModelFunction>>,
        memory: Arc<dyn MemoryPool>,
    ) -> Result<Self> {
        let SessionOptions { models, mut params, failures, partitions } = options;
        let seed = i64::try_from(models.seed()).map_or(ScalarValue::UInt64(Some(models.seed())), ScalarValue::from);
        params.entry("seed".into()).or_insert(seed);
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(memory).build_arc()?;
        let state = SessionStateBuilder::new()
            .with_config(config(partitions))
            .with_runtime_env(runtime)
            .with_default_features()
            .with_optimizer_rules(rules(&models))
            .with_query_planner(Arc::new(ModelPlanner::new(Arc::clone(&models), failures)))
            .build();
        let ctx = SessionContext::new_with_state(state);
        let mut names = Vec::new();
        let generating = functions.into_iter().map(|function| ModelUdf::udf(function, &models));
        for function in generating.chain(udf::scalar_functions(&models)) {
            names.push(function.name().to_owned());
            ctx.register_udf(function);
        }
        names.sort();
        Ok(Self { ctx, params, functions: names })
    }

    /// The underlying session.
    pub fn context(&self) -> &SessionContext {
        &self.ctx
    }

    /// Names of the project's own functions, sorted.
    pub fn functions(&self) -> &[String] {
        &self.functions
    }

    /// Names of the registered tables, sorted.
    pub fn tables(&self) -> Vec<String> {
        let schema = self.ctx.catalog("datafusion").and_then(|catalog| catalog.schema("public"));
        let mut names = schema.map(|schema| schema.table_names()).unwrap_or_default();
        names.sort();
        names
    }

    /// Makes a table known under a name; a table that had the name is replaced.
    ///
    /// # Errors
    /// A table that is not finished, files that are not there or not of a known format.
    pub async fn register(&self, name: &str, source: TableSource) -> Result<()> {
        let provider = match source {
            TableSource::Managed { location, table } => tables::managed(&self.ctx, &location, &table).await,
            TableSource::Fragment { location, table, file, rows } => {
                tables::fragment(&self.ctx, &location, &table, &file, rows).await
            }
            TableSource::Files(pattern) => tables::files(&self.ctx, &pattern).await,
        };
        let provider = provider.with_context(|| format!("the table `{name}`"))?;
        let reference = datafusion::common::TableReference::bare(name);
        self.ctx.deregister_table(reference.clone())?;
        self.ctx.register_table(reference, provider)?;
        Ok(())
    }

    /// Plans one read-only statement with the parameters bound. Errors carry the position and list the known tables or models.
    pub async fn sql(&self, query: &str) -> Result<DataFrame> {
        let statement = parse(query, &self.params)?;
        let state = self.ctx.state();
        for table in table_references(&statement)? {
            let known = self.ctx.table_exist(table.clone()).unwrap_or(false)
                || table.schema().is_some()
                || state.table_functions().contains_key(table.table());
            if !known {
                bail!("no table `{table}`; {}", list("there are", &self.tables()));
            }
        }
        let plan = state.statement_to_plan(statement).await.map_err(|e| self.explained(e))?;
        let read_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        read_only.verify_plan(&plan).map_err(|e| sql_error(e).context(READ_ONLY))?;
        // Model names are checked by the rule; finding out now is better than at the first row.
        let checked = match &plan {
            LogicalPlan::Explain(explain) => &explain.plan,
            LogicalPlan::Analyze(analyze) => &analyze.input,
            other => other,
        };
        state.optimize(checked).map_err(sql_error)?;
        Ok(DataFrame::new(state, plan))
    }

    fn explained(&self, error: datafusion::error::DataFusionError) -> anyhow::Error {
        let unknown_function = error.message().contains("Invalid function");
        let error = sql_error(error);
        if unknown_function {
            return anyhow::anyhow!("{error:#}; {}", list("besides SQL's own functions there are", &self.functions));
        }
        error
    }
}

fn list(lead: &str, names: &[String]) -> String {
    if names.is_empty() { format!("{lead} none") } else { format!("{lead}: {}", names.join(", ")) }
}

fn config(partitions: usize) -> SessionConfig {
    let mut config = SessionConfig::new().with_information_schema(true).with_batch_size(BATCH_ROWS);
    if partitions > 0 {
        config = config.with_target_partitions(partitions);
    }
    let options = config.options_mut();
    // Plain strings: outputs are opened by other tools.
    options.execution.parquet.schema_force_view_types = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    config
}

/// DataFusion's rules with ours: hoisting first and after decorrelation, pruning last.
fn rules(models: &Arc<Models>) -> Vec<Arc<dyn OptimizerRule + Send + Sync>> {
    let mut rules = Optimizer::new().rules;
    let after = rules.iter().position(|rule| rule.name() == "decorrelate_lateral_join").map_or(rules.len(), |i| i + 1);
    rules.insert(after, Arc::new(HoistModelCalls::new(Arc::clone(models))));
    rules.insert(0, Arc::new(HoistModelCalls::new(Arc::clone(models))));
    rules.push(Arc::new(PruneModelCalls));
    rules
}

/// One pool for all sessions of the process: half of the memory that is free at the start.
fn shared_memory() -> Arc<dyn MemoryPool> {
    static POOL: OnceLock<Arc<dyn MemoryPool>> = OnceLock::new();
    Arc::clone(POOL.get_or_init(|| Arc::new(FairSpillPool::new(free_memory() / 2))))
}

/// Bytes, by the kernel and the control group; 4 GiB where neither says.
fn free_memory() -> usize {
    let system = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib << 10)
    });
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    [system, group].into_iter().flatten().min().unwrap_or(4 << 30)
}
