//! Runs tests/slt/*.slt. Every file gets its own session with the tables and functions of [`super::fake`].
//!
//! `SELECT calls_made()` gives the number of model calls since it was last asked. EXPLAIN gives the physical plan, one row a node, indented
//! by `--`, numbers of generated columns left out. `REPRO_UPDATE_SLT=1` writes what comes out into the files, for review.

use super::fake::{Log, World, cells};
use arrow::datatypes::DataType;
use datafusion::{
    common::ScalarValue,
    logical_expr::{ColumnarValue, Volatility, create_udf},
};
use regex::Regex;
use sqllogictest::{
    DBOutput, DefaultColumnType, Runner, default_column_validator, default_normalizer, default_validator,
};
use std::sync::Arc;

struct Db(World);

#[derive(Debug)]
struct Failed(String);
impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::error::Error for Failed {}

impl Db {
    fn new() -> Self {
        let world = World::new();
        let log: Arc<Log> = Arc::clone(&world.log);
        let count = create_udf(
            "calls_made",
            vec![],
            DataType::Int64,
            Volatility::Volatile,
            Arc::new(move |_| {
                let count = i64::try_from(log.take().len()).unwrap();
                Ok(ColumnarValue::Scalar(ScalarValue::from(count)))
            }),
        );
        world.session.context().register_udf(count);
        Self(world)
    }
    async fn output(&self, sql: &str) -> anyhow::Result<DBOutput<DefaultColumnType>> {
        let frame = self.0.session.sql(sql).await?;
        let types: Vec<_> = frame.schema().fields().iter().map(|f| kind(f.data_type())).collect();
        let batches = frame.collect().await?;
        let mut rows: Vec<Vec<String>> = batches.iter().flat_map(cells).collect();
        if sql.trim_start().to_uppercase().starts_with("EXPLAIN") {
            rows = plan_lines(&rows);
            return Ok(DBOutput::Rows { types: vec![DefaultColumnType::Text], rows });
        }
        for cell in rows.iter_mut().flatten().filter(|cell| cell.is_empty()) {
            *cell = "(empty)".into();
        }
        Ok(DBOutput::Rows { types, rows })
    }
}

fn kind(data_type: &DataType) -> DefaultColumnType {
    match data_type {
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => DefaultColumnType::Text,
        t if t.is_integer() => DefaultColumnType::Integer,
        t if t.is_floating() => DefaultColumnType::FloatingPoint,
        _ => DefaultColumnType::Any,
    }
}

fn plan_lines(rows: &[Vec<String>]) -> Vec<Vec<String>> {
    let number = Regex::new(r"(__[a-z_]+)_\d+").unwrap();
    let plans = rows.iter().filter(|row| row[0] == "physical_plan");
    let lines = plans.flat_map(|row| row[1].lines());
    lines
        .map(|line| {
            let depth = line.len() - line.trim_start().len();
            vec![format!("{}{}", "-".repeat(depth), number.replace_all(line.trim_start(), "$1"))]
        })
        .collect()
}

#[async_trait::async_trait]
impl sqllogictest::AsyncDB for Db {
    type Error = Failed;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<Self::ColumnType>, Self::Error> {
        self.output(sql).await.map_err(|e| Failed(format!("{e:#}")))
    }
    async fn shutdown(&mut self) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_slt_file_holds() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt");
    let mut files: Vec<_> = std::fs::read_dir(root).unwrap().map(|f| f.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "slt"));
    files.sort();
    assert!(files.len() >= 3, "{files:?}");
    for file in files {
        let mut runner = Runner::new(|| async { Ok(Db::new()) });
        if std::env::var_os("REPRO_UPDATE_SLT").is_some() {
            runner
                .update_test_file(&file, "\t", default_validator, default_normalizer, default_column_validator)
                .await
                .unwrap();
        } else if let Err(error) = runner.run_file_async(&file).await {
            panic!("{}", error.display(false));
        }
    }
}
