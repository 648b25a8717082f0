//! The logical node of the model operator: its input's columns followed by one column per model call. Rows in = rows out, in order.
//!
//! [`super::hoist`] makes these nodes, [`super::model_exec`] runs them. The node tells DataFusion's own rules how it may be treated:
//! predicates on other columns sink below it, limits too, unused input columns are pruned.

use crate::udf::ModelFunction;
use arrow::datatypes::Field;
use datafusion::{
    common::{Column, DFSchema, DFSchemaRef, Result, internal_err},
    logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNodeCore},
};
use std::{
    cmp::Ordering,
    collections::HashSet,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// One call: a function, a model, and arguments over the node's input.
#[derive(Debug, Clone)]
pub struct ModelCall {
    /// What to compute.
    pub function: Arc<dyn ModelFunction>,
    /// An entry of `models:`.
    pub model: String,
    /// The arguments without the model's name.
    pub args: Vec<Expr>,
    /// The column `id` that names a row when it fails, where the input has one.
    pub row_id: Option<Column>,
    /// Name of the generated column; unique in the plan.
    pub output: String,
    /// The call as the user wrote it, for EXPLAIN.
    pub shown: String,
}

impl ModelCall {
    fn key(&self) -> (&str, &str, &[Expr], &Option<Column>, &str) {
        (self.function.name(), &self.model, &self.args, &self.row_id, &self.output)
    }
    /// The call and its model, as EXPLAIN shows them.
    pub fn describe(&self) -> String {
        format!("{} model={}", self.shown, self.model)
    }
}
impl PartialEq for ModelCall {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for ModelCall {}
impl PartialOrd for ModelCall {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.key().partial_cmp(&other.key())
    }
}
impl Hash for ModelCall {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// Calls over one input.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelNode {
    input: LogicalPlan,
    calls: Vec<ModelCall>,
    schema: DFSchemaRef,
}

impl ModelNode {
    /// Puts the calls on top of `input`.
    ///
    /// # Errors
    /// A generated name that the input already has.
    pub fn try_new(input: LogicalPlan, calls: Vec<ModelCall>) -> Result<Self> {
        let generated =
            calls.iter().map(|call| (None, Arc::new(Field::new(&call.output, call.function.return_type(), true))));
        let below = input.schema();
        let fields = below.iter().map(|(q, f)| (q.cloned(), Arc::clone(f))).chain(generated).collect();
        let schema = DFSchema::new_with_metadata(fields, below.metadata().clone())?;
        let schema = schema.with_functional_dependencies(below.functional_dependencies().clone())?;
        Ok(Self { input, calls, schema: Arc::new(schema) })
    }
    /// The calls, in the order of their columns.
    pub fn calls(&self) -> &[ModelCall] {
        &self.calls
    }
    /// The plan below.
    pub fn input(&self) -> &LogicalPlan {
        &self.input
    }
}

impl PartialOrd for ModelNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match self.calls.partial_cmp(&other.calls) {
            Some(Ordering::Equal) => self.input.partial_cmp(&other.input),
            order => order,
        }
    }
}

impl UserDefinedLogicalNodeCore for ModelNode {
    fn name(&self) -> &str {
        "Model"
    }
    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }
    fn schema(&self) -> &DFSchemaRef {
        &self.schema
    }
    fn expressions(&self) -> Vec<Expr> {
        let of_call = |call: &ModelCall| {
            let id = call.row_id.clone().map(Expr::Column);
            call.args.iter().cloned().chain(id).collect::<Vec<_>>()
        };
        self.calls.iter().flat_map(of_call).collect()
    }
    fn prevent_predicate_push_down_columns(&self) -> HashSet<String> {
        self.calls.iter().map(|call| call.output.clone()).collect()
    }
    fn fmt_for_explain(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let calls: Vec<String> = self.calls.iter().map(ModelCall::describe).collect();
        write!(f, "Model: {}", calls.join(", "))
    }
    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, mut inputs: Vec<LogicalPlan>) -> Result<Self> {
        let (Some(input), true) = (inputs.pop(), inputs.is_empty()) else {
            return internal_err!("the model operator has one input");
        };
        let mut exprs = exprs.into_iter();
        let mut calls = Vec::with_capacity(self.calls.len());
        for call in &self.calls {
            let args: Vec<Expr> = exprs.by_ref().take(call.args.len()).collect();
            let row_id = match call.row_id.as_ref().and_then(|_| exprs.next()) {
                Some(Expr::Column(column)) => Some(column),
                _ => None,
            };
            if args.len() != call.args.len() {
                return internal_err!("{} got {} arguments", call.shown, args.len());
            }
            calls.push(ModelCall { args, row_id, ..call.clone() });
        }
        Self::try_new(input, calls)
    }
    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // The columns of the arguments are added by the caller, from `expressions`.
        let below = self.input.schema().fields().len();
        Some(vec![output_columns.iter().copied().filter(|&i| i < below).collect()])
    }
    fn supports_limit_pushdown(&self) -> bool {
        true
    }
}
