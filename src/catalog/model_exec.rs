//! The physical model operator.
//!
//! Each partition's input is cut into small batches; the calls of several batches run at the same time; output comes in input order.
//! Bounded: a process-wide number of requests per model ([`Models::permits`]), a number of batches per partition. Equal arguments are
//! computed once ([`super::memo`]). Batches run as tasks of the runtime, so that they go on while a slow consumer does not poll; dropping
//! the output stream aborts them, which drops the requests.
//!
//! NULL in, NULL out, without a call. A row that fails has a NULL and is reported, with its id, in row order; with
//! [`Failures::Divert`] it leaves the stream. A fault of all rows (the model cannot be loaded) fails the query.

use super::{
    memo::{Answer, Claim, Key, Memo},
    model_node::ModelNode,
    session::Failures,
};
use crate::udf::{ModelFunction, models::Models};
use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt64Array, new_null_array},
    compute::{cast, concat_batches, filter_record_batch, interleave, take},
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
};
use async_trait::async_trait;
use datafusion::{
    common::{Result, exec_err, internal_err, runtime::SpawnedTask, tree_node::TreeNodeRecursion},
    execution::{SendableRecordBatchStream, TaskContext, context::QueryPlanner},
    logical_expr::{LogicalPlan, UserDefinedLogicalNode},
    physical_expr::{PhysicalExpr, projection::ProjectionMapping},
    physical_plan::{
        DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, apply_expression_roots,
        execution_plan::{CardinalityEffect, ReplaceChildrenOptions},
        metrics::{BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, Time},
        stream::RecordBatchStreamAdapter,
    },
    physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner},
};
use futures::{Stream, StreamExt, TryStreamExt, future::try_join_all};
use std::{collections::HashMap, fmt, sync::Arc};

/// Rows of a batch of calls.
const BATCH_ROWS: usize = 64;

/// One call over the operator's input.
#[derive(Debug, Clone)]
struct Call {
    function: Arc<dyn ModelFunction>,
    model: String,
    args: Vec<Arc<dyn PhysicalExpr>>,
    row_id: Option<Arc<dyn PhysicalExpr>>,
    field: FieldRef,
    shown: String,
    memo: Arc<Memo>,
}

/// The operator; see the top of the file.
pub struct ModelExec {
    input: Arc<dyn ExecutionPlan>,
    calls: Vec<Call>,
    models: Arc<Models>,
    failures: Failures,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ModelExec {
    fn try_new(
        input: Arc<dyn ExecutionPlan>,
        calls: Vec<Call>,
        models: Arc<Models>,
        failures: Failures,
    ) -> Result<Self> {
        let below = input.schema();
        let fields: Vec<FieldRef> =
            below.fields().iter().cloned().chain(calls.iter().map(|call| Arc::clone(&call.field))).collect();
        let schema = Arc::new(Schema::new_with_metadata(fields, below.metadata().clone()));
        let every: Vec<usize> = (0..below.fields().len()).collect();
        let same = ProjectionMapping::from_indices(&every, &below)?;
        let properties = PlanProperties::new(
            input.equivalence_properties().project(&same, schema),
            input.output_partitioning().clone(),
            input.pipeline_behavior(),
            input.boundedness(),
        );
        let metrics = ExecutionPlanMetricsSet::new();
        Ok(Self { input, calls, models, failures, properties: Arc::new(properties), metrics })
    }
    fn diverts(&self) -> bool {
        matches!(self.failures, Failures::Divert(_))
    }
    /// Batches in flight of one partition: twice what the model's permits let run, so that a straggler does not starve the rest.
    fn batches_in_flight(&self) -> usize {
        let permits = self.calls.iter().filter_map(|call| self.models.permits(&call.model)).map(|(_, count)| count);
        (2 * permits.max().unwrap_or(0) / BATCH_ROWS).clamp(4, 64)
    }
}

impl fmt::Debug for ModelExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelExec").field("calls", &self.calls).field("input", &self.input).finish_non_exhaustive()
    }
}

impl DisplayAs for ModelExec {
    fn fmt_as(&self, format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls: Vec<String> = self.calls.iter().map(|c| format!("{} model={}", c.shown, c.model)).collect();
        match format {
            DisplayFormatType::Default | DisplayFormatType::Verbose => write!(f, "ModelExec: {}", calls.join(", ")),
            DisplayFormatType::TreeRender => writeln!(f, "{}", calls.join("\n")),
        }
    }
}

impl ExecutionPlan for ModelExec {
    fn name(&self) -> &str {
        "ModelExec"
    }
    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }
    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }
    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        // Calls run concurrently whatever the partitions.
        vec![false]
    }
    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }
    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        let exprs = self.calls.iter().flat_map(|call| call.args.iter().chain(&call.row_id)).cloned();
        apply_expression_roots(exprs.collect::<Vec<_>>(), f)
    }
    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Ok([input]) = <[_; 1]>::try_from(children) else {
            return internal_err!("the model operator has one input");
        };
        let fresh = |call: &Call| Call { memo: Arc::default(), ..call.clone() };
        let calls = self.calls.iter().map(fresh).collect();
        Ok(Arc::new(Self::try_new(input, calls, Arc::clone(&self.models), self.failures.clone())?))
    }
    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        let mode = datafusion::physical_plan::ChildrenPropertiesMode::Recompute;
        self.replace_children(children, ReplaceChildrenOptions::new(mode))
    }
    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, context)?;
        let metrics = Metrics::new(&self.metrics, partition);
        let worker =
            Arc::new(Worker { calls: self.calls.clone(), models: Arc::clone(&self.models), metrics: metrics.clone() });
        let finish = Finish { schema: self.schema(), calls: self.calls.clone(), failures: self.failures.clone() };
        let output = rebatch(input)
            .map(move |batch| {
                let worker = Arc::clone(&worker);
                let task = batch.map(|batch| SpawnedTask::spawn(async move { worker.run(batch).await }));
                async move {
                    match task?.join().await {
                        Ok(done) => done,
                        Err(stopped) => exec_err!("a batch of model calls stopped: {stopped}"),
                    }
                }
            })
            .buffered(self.batches_in_flight())
            .map(move |done| {
                let batch = finish.run(&done?, &metrics)?;
                metrics.baseline.record_output(batch.num_rows());
                Ok(batch)
            });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), output)))
    }
    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
    fn supports_limit_pushdown(&self) -> bool {
        true
    }
    fn cardinality_effect(&self) -> CardinalityEffect {
        if self.diverts() { CardinalityEffect::LowerEqual } else { CardinalityEffect::Equal }
    }
}

#[derive(Clone)]
struct Metrics {
    baseline: BaselineMetrics,
    /// Rows sent to models: distinct, without NULL.
    calls: Count,
    failed_rows: Count,
    output_tokens: Count,
    /// Sum over batches of the time from a batch's start to its end.
    call_time: Time,
}

impl Metrics {
    fn new(set: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let count = |name| MetricBuilder::new(set).counter(name, partition);
        Self {
            baseline: BaselineMetrics::new(set, partition),
            calls: count("calls"),
            failed_rows: count("failed_rows"),
            output_tokens: count("output_tokens"),
            call_time: MetricBuilder::new(set).subset_time("call_time", partition),
        }
    }
}

/// Cuts large batches into pieces of [`BATCH_ROWS`] and gathers small ones.
fn rebatch(mut input: SendableRecordBatchStream) -> impl Stream<Item = Result<RecordBatch>> + Send {
    async_stream::try_stream! {
        let schema: SchemaRef = input.schema();
        let mut waiting: Vec<RecordBatch> = Vec::new();
        let mut rows = 0;
        while let Some(batch) = input.try_next().await? {
            let mut start = 0;
            while start < batch.num_rows() {
                let n = (BATCH_ROWS - rows).min(batch.num_rows() - start);
                waiting.push(batch.slice(start, n));
                (start, rows) = (start + n, rows + n);
                if rows == BATCH_ROWS {
                    yield gather(&schema, &mut waiting)?;
                    rows = 0;
                }
            }
        }
        if rows > 0 {
            yield gather(&schema, &mut waiting)?;
        }
    }
}

fn gather(schema: &SchemaRef, waiting: &mut Vec<RecordBatch>) -> Result<RecordBatch> {
    let batch = match waiting.as_slice() {
        [one] => one.clone(),
        several => concat_batches(schema, several)?,
    };
    waiting.clear();
    Ok(batch)
}

/// A batch with the answers to each of its calls; None where an argument is NULL.
struct Done {
    batch: RecordBatch,
    answers: Vec<Vec<Option<Answer>>>,
}

struct Worker {
    calls: Vec<Call>,
    models: Arc<Models>,
    metrics: Metrics,
}

impl Worker {
    async fn run(&self, batch: RecordBatch) -> Result<Done> {
        let timer = self.metrics.call_time.timer();
        let answers = try_join_all(self.calls.iter().map(|call| self.answer(call, &batch))).await?;
        drop(timer);
        Ok(Done { batch, answers })
    }

    async fn answer(&self, call: &Call, batch: &RecordBatch) -> Result<Vec<Option<Answer>>> {
        let args = texts(call, batch)?;
        let keys: Vec<Option<Key>> = (0..batch.num_rows()).map(|row| key(&args, row)).collect();
        let mut answers: Vec<Option<Answer>> = vec![None; batch.num_rows()];
        loop {
            let (mut mine, mut others) = (Vec::new(), Vec::new());
            for (row, key) in keys.iter().enumerate().filter(|(row, _)| answers[*row].is_none()) {
                let Some(key) = key else { continue };
                match call.memo.claim(*key) {
                    Claim::Mine(sender) => mine.push((row, *key, sender)),
                    Claim::Other(pending) => others.push((row, pending)),
                }
            }
            if mine.is_empty() && others.is_empty() {
                return Ok(answers);
            }
            if !mine.is_empty() {
                let rows: UInt64Array = mine.iter().map(|(row, ..)| Some(*row as u64)).collect();
                let made = self.compute(call, &args, &rows).await?;
                for ((row, key, sender), (answer, bytes)) in mine.into_iter().zip(made) {
                    answers[row] = Some(answer.clone());
                    call.memo.finish(key, &sender, answer, bytes);
                }
            }
            for (row, mut pending) in others {
                // An error means that the task that made the call was cancelled: the next round makes it here.
                if let Ok(answer) = pending.wait_for(Option::is_some).await {
                    answers[row].clone_from(&answer);
                }
            }
        }
    }

    /// One request per row, within the model's permits; each answer with its approximate size.
    async fn compute(&self, call: &Call, args: &[ArrayRef], rows: &UInt64Array) -> Result<Vec<(Answer, usize)>> {
        let args = args.iter().map(|arg| Ok(take(arg, rows, None)?)).collect::<Result<Vec<_>>>()?;
        let permits = match self.models.permits(&call.model) {
            Some((semaphore, count)) => {
                let wanted = u32::try_from(rows.len().min(count)).unwrap_or(u32::MAX);
                match semaphore.acquire_many_owned(wanted).await {
                    Ok(permits) => Some(permits),
                    Err(_) => return exec_err!("model `{}` is closed", call.model),
                }
            }
            None => None,
        };
        let output = call.function.call(&self.models, &call.model, &args).await?;
        drop(permits);
        if output.array.len() != rows.len() || output.errors.len() != rows.len() {
            return internal_err!("{} returned {} rows for {}", call.shown, output.array.len(), rows.len());
        }
        self.metrics.calls.add(rows.len());
        self.metrics.output_tokens.add(usize::try_from(output.output_tokens).unwrap_or(usize::MAX));
        let bytes = output.array.get_array_memory_size() / rows.len().max(1) + 128;
        let answer = |(row, error): (usize, Option<String>)| {
            (Answer { array: Arc::clone(&output.array), row, error: error.map(Arc::from) }, bytes)
        };
        Ok(output.errors.into_iter().enumerate().map(answer).collect())
    }
}

/// The call's arguments as Utf8 columns.
fn texts(call: &Call, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
    let column = |arg: &Arc<dyn PhysicalExpr>| {
        let array = arg.evaluate(batch)?.into_array(batch.num_rows())?;
        Ok(if array.data_type() == &DataType::Utf8 { array } else { cast(&array, &DataType::Utf8)? })
    };
    call.args.iter().map(column).collect()
}

/// What tells calls apart; None if an argument is NULL.
fn key(args: &[ArrayRef], row: usize) -> Option<Key> {
    let mut hasher = blake3::Hasher::new();
    for arg in args {
        if arg.is_null(row) {
            return None;
        }
        let text = arg.as_string::<i32>().value(row);
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    Some(*hasher.finalize().as_bytes())
}

/// Makes output batches, reports failures.
struct Finish {
    schema: SchemaRef,
    calls: Vec<Call>,
    failures: Failures,
}

impl Finish {
    fn run(&self, done: &Done, metrics: &Metrics) -> Result<RecordBatch> {
        let rows = done.batch.num_rows();
        let mut columns = done.batch.columns().to_vec();
        for (call, answers) in self.calls.iter().zip(&done.answers) {
            columns.push(column(call.field.data_type(), answers)?);
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        let failed = self.report(done)?;
        let count = failed.iter().filter(|failed| **failed).count();
        metrics.failed_rows.add(count);
        if count > 0 && matches!(self.failures, Failures::Divert(_)) {
            let keep: BooleanArray = failed.iter().map(|failed| Some(!failed)).collect();
            return Ok(filter_record_batch(&batch, &keep)?);
        }
        Ok(batch)
    }

    /// Tells the sink of each failed row, once, and which they are.
    fn report(&self, done: &Done) -> Result<Vec<bool>> {
        let mut failed = vec![false; done.batch.num_rows()];
        let mut ids: HashMap<usize, ArrayRef> = HashMap::new();
        let (Failures::Null(sink) | Failures::Divert(sink)) = &self.failures;
        for row in 0..failed.len() {
            let mut errors = Vec::new();
            let mut id = String::new();
            for (i, (call, answers)) in self.calls.iter().zip(&done.answers).enumerate() {
                let Some(error) = answers[row].as_ref().and_then(|a| a.error.as_ref()) else { continue };
                errors.push(format!("{}: {error}", call.function.name()));
                if let (true, Some(row_id)) = (id.is_empty(), &call.row_id) {
                    if let std::collections::hash_map::Entry::Vacant(entry) = ids.entry(i) {
                        let array = row_id.evaluate(&done.batch)?.into_array(failed.len())?;
                        entry.insert(cast(&array, &DataType::Utf8)?);
                    }
                    let column = ids[&i].as_string::<i32>();
                    id = if column.is_null(row) { String::new() } else { column.value(row).to_owned() };
                }
            }
            if !errors.is_empty() {
                failed[row] = true;
                sink(id, errors.join("; "));
            }
        }
        Ok(failed)
    }
}

/// One column from the answers of its rows.
fn column(data_type: &DataType, answers: &[Option<Answer>]) -> Result<ArrayRef> {
    let null = new_null_array(data_type, 1);
    let mut arrays: Vec<&dyn Array> = vec![null.as_ref()];
    let mut known: HashMap<*const u8, usize> = HashMap::new();
    let mut places = Vec::with_capacity(answers.len());
    for answer in answers {
        let Some(answer) = answer else {
            places.push((0, 0));
            continue;
        };
        let at = *known.entry(Arc::as_ptr(&answer.array).cast()).or_insert_with(|| {
            arrays.push(answer.array.as_ref());
            arrays.len() - 1
        });
        places.push((at, answer.row));
    }
    Ok(interleave(&arrays, &places)?)
}

/// Plans [`ModelNode`]s.
pub struct ModelPlanner {
    models: Arc<Models>,
    failures: Failures,
}

impl ModelPlanner {
    /// `failures` is where the session's failed rows go.
    pub fn new(models: Arc<Models>, failures: Failures) -> Self {
        Self { models, failures }
    }
}

impl fmt::Debug for ModelPlanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelPlanner").field("models", &self.models).finish_non_exhaustive()
    }
}

#[async_trait]
impl ExtensionPlanner for ModelPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _: &[&LogicalPlan],
        inputs: &[Arc<dyn ExecutionPlan>],
        session: &dyn datafusion::catalog::Session,
        planning: &datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let (Some(node), [input]) = (node.as_any().downcast_ref::<ModelNode>(), inputs) else { return Ok(None) };
        let below = node.input().schema();
        let physical = |expr: &_| planner.create_physical_expr(expr, below, session, planning);
        let calls = node.calls().iter().map(|call| {
            let row_id = call.row_id.clone().map(datafusion::logical_expr::Expr::Column);
            let field = arrow::datatypes::Field::new(&call.output, call.function.return_type(), true);
            Ok(Call {
                function: Arc::clone(&call.function),
                model: call.model.clone(),
                args: call.args.iter().map(physical).collect::<Result<_>>()?,
                row_id: row_id.as_ref().map(physical).transpose()?,
                field: Arc::new(field),
                shown: call.shown.clone(),
                memo: Arc::default(),
            })
        });
        let calls = calls.collect::<Result<_>>()?;
        let exec = ModelExec::try_new(Arc::clone(input), calls, Arc::clone(&self.models), self.failures.clone())?;
        Ok(Some(Arc::new(exec)))
    }
}

#[async_trait]
impl QueryPlanner for ModelPlanner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        session: &dyn datafusion::catalog::Session,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let own = Self { models: Arc::clone(&self.models), failures: self.failures.clone() };
        DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(own)]).create_physical_plan(plan, session).await
    }
}
