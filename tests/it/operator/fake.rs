//! Model functions that need no model: they log their calls, can wait, and fail on request.

use arrow::{
    array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, StructArray},
    buffer::NullBuffer,
    datatypes::{DataType, Field, Fields},
};
use datafusion::{common::ScalarValue, error::Result, execution::memory_pool::GreedyMemoryPool};
use futures::future::join_all;
use repro::{
    catalog::session::{Failures, Session, SessionOptions},
    udf::{
        CallOutput, ModelFunction,
        models::{CausalLmSpec, FastTextSpec, ModelSpec, Models},
    },
};
use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// What the fakes saw.
#[derive(Debug, Default)]
pub struct Log {
    calls: Mutex<Vec<String>>,
    running: AtomicUsize,
    pub peak: AtomicUsize,
    pub finished: AtomicUsize,
    pub abandoned: AtomicUsize,
}

impl Log {
    /// The calls since the last time, as `function/model(argument, …)`, sorted.
    pub fn take(&self) -> Vec<String> {
        let mut calls = std::mem::take(&mut *self.calls.lock().unwrap());
        calls.sort();
        calls
    }
    pub fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

/// Counts a request as running until it ends or is dropped.
struct Running<'a>(&'a Log, bool);
impl<'a> Running<'a> {
    fn new(log: &'a Log) -> Self {
        let now = log.running.fetch_add(1, Ordering::SeqCst) + 1;
        log.peak.fetch_max(now, Ordering::SeqCst);
        Self(log, false)
    }
}
impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
        let ended = if self.1 { &self.0.finished } else { &self.0.abandoned };
        ended.fetch_add(1, Ordering::SeqCst);
    }
}

/// `shout(text)` is the text in capitals, `facts(text)` a struct of it and its length, `pair(a, b)` both with a bar between. A text with
/// `poison` in it fails.
#[derive(Debug)]
pub struct Fake {
    pub name: &'static str,
    pub log: Arc<Log>,
    /// Milliseconds that a request may take; how many it takes depends on its text.
    pub delay: u64,
}

impl Fake {
    fn fields() -> Fields {
        Fields::from(vec![Field::new("text", DataType::Utf8, true), Field::new("length", DataType::Int64, true)])
    }
    fn texts(&self) -> usize {
        if self.name == "pair" { 2 } else { 1 }
    }
    async fn one(&self, model: &str, texts: Vec<&str>) -> std::result::Result<String, String> {
        self.log.calls.lock().unwrap().push(format!("{}/{model}({})", self.name, texts.join(", ")));
        let mut running = Running::new(&self.log);
        if self.delay > 0 {
            let hash = texts.join("").bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
            tokio::time::sleep(Duration::from_millis(hash % self.delay)).await;
        }
        running.1 = true;
        let text = texts.join("|");
        if text.contains("poison") { Err(format!("{text} is poisoned")) } else { Ok(text.to_uppercase()) }
    }
}

#[async_trait::async_trait]
impl ModelFunction for Fake {
    fn name(&self) -> &'static str {
        self.name
    }
    fn arity(&self) -> RangeInclusive<usize> {
        self.texts()..=self.texts() + 1
    }
    fn return_type(&self) -> DataType {
        if self.name == "facts" { DataType::Struct(Self::fields()) } else { DataType::Utf8 }
    }
    fn model_argument(&self) -> (usize, &'static str) {
        (self.texts(), "rephraser")
    }
    async fn call(&self, _: &Models, model: &str, args: &[ArrayRef]) -> Result<CallOutput> {
        assert!(args.iter().all(|a| a.null_count() == 0), "the operator sends no NULL");
        let rows = 0..args[0].len();
        let texts = |row| args.iter().map(|a| a.as_string::<i32>().value(row)).collect();
        let answers = join_all(rows.map(|row| self.one(model, texts(row)))).await;
        let texts: StringArray = answers.iter().map(|a| a.as_deref().ok()).collect();
        let array: ArrayRef = if self.name == "facts" {
            let lengths: Int64Array = answers.iter().map(|a| a.as_ref().ok().map(|a| a.len() as i64)).collect();
            let valid = NullBuffer::from_iter(answers.iter().map(std::result::Result::is_ok));
            Arc::new(StructArray::new(Self::fields(), vec![Arc::new(texts), Arc::new(lengths)], Some(valid)))
        } else {
            Arc::new(texts)
        };
        let output_tokens = answers.iter().flatten().map(|a| a.len() as u64).sum();
        Ok(CallOutput { array, errors: answers.into_iter().map(std::result::Result::err).collect(), output_tokens })
    }
}

/// A session with the fakes and a small world of tables.
pub struct World {
    pub session: Session,
    pub log: Arc<Log>,
    pub failed: Arc<Mutex<Vec<(String, String)>>>,
}

pub struct Options {
    pub partitions: usize,
    pub delay: u64,
    pub divert: bool,
    pub slots: Option<usize>,
    pub memory: usize,
}
impl Default for Options {
    fn default() -> Self {
        Self { partitions: 1, delay: 0, divert: false, slots: None, memory: 1 << 30 }
    }
}

impl World {
    pub fn new() -> Self {
        Self::with(Options::default())
    }
    pub fn with(options: Options) -> Self {
        let (log, failed) = (Arc::new(Log::default()), Arc::new(Mutex::new(Vec::new())));
        let functions = ["shout", "facts", "pair"]
            .map(|name| Arc::new(Fake { name, log: Arc::clone(&log), delay: options.delay }) as Arc<dyn ModelFunction>);
        let lm = |path: &str| {
            ModelSpec::CausalLm(CausalLmSpec { path: path.into(), slots: options.slots, ..CausalLmSpec::default() })
        };
        let specs = BTreeMap::from([
            ("rephraser".to_owned(), lm("nowhere")),
            ("other".to_owned(), lm("nowhere")),
            ("hq".to_owned(), ModelSpec::Fasttext(FastTextSpec { path: "nowhere.bin".into() })),
        ]);
        let sink = Arc::clone(&failed);
        let sink = Arc::new(move |id, error| sink.lock().unwrap().push((id, error)));
        let session = Session::with(
            SessionOptions {
                models: Models::new(specs, 42),
                params: BTreeMap::from([
                    ("wanted".to_owned(), ScalarValue::from("ALPHA")),
                    ("limit".to_owned(), ScalarValue::from(2i64)),
                    ("low".to_owned(), ScalarValue::from(-1.5f64)),
                    ("model".to_owned(), ScalarValue::from("other")),
                ]),
                failures: if options.divert { Failures::Divert(sink) } else { Failures::Null(sink) },
                partitions: options.partitions,
            },
            functions.to_vec(),
            Arc::new(GreedyMemoryPool::new(options.memory)),
        )
        .unwrap();
        let world = Self { session, log, failed };
        world.table(
            "docs",
            &[
                ("id", strings(&[Some("d1"), Some("d2"), Some("d3"), Some("d4"), Some("d5"), Some("d6")])),
                ("text", strings(&[Some("alpha"), Some("beta"), Some("gamma"), Some("alpha"), None, Some("poison")])),
                ("lang", strings(&[Some("en"), Some("de"), Some("en"), Some("en"), Some("en"), Some("de")])),
                ("n", Arc::new(Int64Array::from(vec![1, 2, 3, 4, 5, 6]))),
            ],
        );
        world.table(
            "labels",
            &[
                ("id", strings(&[Some("d1"), Some("d2"), Some("d4"), Some("d9")])),
                ("label", strings(&[Some("ALPHA"), Some("x"), Some("ALPHA"), Some("y")])),
                ("note", strings(&[Some("one"), Some("two"), None, Some("nine")])),
            ],
        );
        world
    }
    pub fn table(&self, name: &str, columns: &[(&str, ArrayRef)]) {
        let batch = RecordBatch::try_from_iter(columns.iter().cloned()).unwrap();
        self.session.context().register_batch(name, batch).unwrap();
    }
    /// The rows of a query, cells joined by bars.
    pub async fn rows(&self, query: &str) -> anyhow::Result<Vec<String>> {
        let batches = self.session.sql(query).await?.collect().await?;
        Ok(batches.iter().flat_map(cells).map(|row| row.join("|")).collect())
    }
    pub fn failures(&self) -> Vec<(String, String)> {
        std::mem::take(&mut *self.failed.lock().unwrap())
    }
}

pub fn strings(values: &[Option<&str>]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

/// The cells of a batch as text.
pub fn cells(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = arrow::util::display::FormatOptions::default().with_null("NULL");
    let columns: Vec<_> = batch
        .columns()
        .iter()
        .map(|c| arrow::util::display::ArrayFormatter::try_new(c.as_ref(), &options).unwrap())
        .collect();
    let cell = |row: usize| move |c: &arrow::util::display::ArrayFormatter| c.value(row).to_string();
    (0..batch.num_rows()).map(|row| columns.iter().map(cell(row)).collect()).collect()
}
