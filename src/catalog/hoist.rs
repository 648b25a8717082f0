//! The optimizer rule that moves every model call of a query into a [`ModelNode`].
//!
//! It runs before all other rules, so that they see plain columns where the user wrote calls: predicates, limits and projections are then
//! pushed around the node by DataFusion itself. A second instance runs after decorrelation, for calls inside correlated subqueries.
//!
//! How: bottom up. A node whose expressions hold calls gets a model node as its input, and columns in place of the calls. Generated columns
//! travel upward through filters, sorts, limits, aliases, joins and projections that still hold the arguments, so that a parent that makes
//! the same call finds the column ready; where a schema must not grow (unions, aggregates, the root) a projection drops them.
//!
//! What holds for the user:
//! * each distinct call (function, model, arguments) of a chain of nodes is computed once;
//! * of a WHERE, cheap conjuncts run first, then the calls one after another in written order, each on the rows that are left;
//! * a call in one branch of CASE, COALESCE, AND inside OR is computed for all rows that reach the expression, not only for those
//!   that take the branch: put a cheap condition into WHERE to save calls;
//! * a call in a join condition is computed below its side; over both sides of an inner join it becomes a filter above the join.
//!
//! The rule finds nothing to do in a plan that it made (idempotent).

use super::{
    defer::{argument_name, defer},
    model_node::{ModelCall, ModelNode},
};
use crate::udf::{ModelFunction, model_udf::ModelUdf, models::Models};
use arrow::{compute::can_cast_types, datatypes::DataType};
use datafusion::{
    common::{
        Column, DFSchemaRef, ExprSchema, Result,
        alias::AliasGenerator,
        plan_err,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    logical_expr::{
        Aggregate, Distinct, DistinctOn, Expr, Extension, Filter, Join, JoinType, LogicalPlan, Projection, Sort,
        Subquery, SubqueryAlias, Window, expr_rewriter::NamePreserver, utils::split_conjunction_owned,
    },
    optimizer::{OptimizerConfig, OptimizerRule},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// The rule; see the top of the file.
#[derive(Debug)]
pub struct HoistModelCalls {
    models: Arc<Models>,
}

impl HoistModelCalls {
    /// `models` are those that calls may name.
    pub fn new(models: Arc<Models>) -> Self {
        Self { models }
    }
}

impl OptimizerRule for HoistModelCalls {
    fn name(&self) -> &str {
        "hoist_model_calls"
    }
    fn rewrite(&self, plan: LogicalPlan, config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        if !plan_calls(&plan)? {
            return Ok(Transformed::no(plan));
        }
        let before = plan.clone();
        let names = config.alias_generator();
        let mut hoister =
            Hoister { models: &self.models, names, row_ids: HashMap::new(), shown: HashMap::new(), made: 0 };
        let plan = hoister.whole(defer(plan, names)?)?;
        // Calls that this instance has to leave (correlated subqueries) must not count as a change.
        Ok(if hoister.made > 0 { Transformed::yes(plan) } else { Transformed::no(before) })
    }
}

/// The model function that an expression calls, at its root.
pub(super) fn called(expr: &Expr) -> Option<&Arc<dyn ModelFunction>> {
    match expr {
        Expr::ScalarFunction(call) => ModelUdf::of(&call.func),
        _ => None,
    }
}

/// Whether an expression holds a model call (subqueries do not count).
pub(super) fn calls(expr: &Expr) -> bool {
    expr.exists(|e| Ok(called(e).is_some())).unwrap_or(false)
}

/// Whether a plan holds a model call anywhere, subqueries included.
fn plan_calls(plan: &LogicalPlan) -> Result<bool> {
    let mut found = false;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            found |= calls(expr);
            Ok(TreeNodeRecursion::Continue)
        })?;
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(found)
}

/// A call, ready to be compared: the model is resolved, the arguments are expressions over the columns at hand.
#[derive(Debug, Clone)]
struct Call {
    function: Arc<dyn ModelFunction>,
    model: String,
    args: Vec<Expr>,
}
impl PartialEq for Call {
    fn eq(&self, other: &Self) -> bool {
        self.function.name() == other.function.name() && self.model == other.model && self.args == other.args
    }
}

/// A generated column that the plan offers.
#[derive(Debug, Clone)]
struct Carried {
    call: Call,
    column: Column,
}

/// A plan without calls. Its schema may hold generated columns besides those of `schema`.
struct Hoisted {
    plan: LogicalPlan,
    schema: DFSchemaRef,
    carried: Vec<Carried>,
}

impl Hoisted {
    /// Drops generated columns.
    fn restored(self) -> Result<LogicalPlan> {
        if self.plan.schema().fields().len() == self.schema.fields().len() {
            return Ok(self.plan);
        }
        let columns = self.schema.columns().into_iter().map(Expr::Column).collect();
        Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(self.plan))?))
    }
}

struct Hoister<'a> {
    models: &'a Models,
    names: &'a AliasGenerator,
    /// Generated column → the `id` column of its row, so that stacked calls report the same row.
    row_ids: HashMap<String, Option<Column>>,
    /// Generated column → the call in the user's words.
    shown: HashMap<String, String>,
    made: usize,
}

impl Hoister<'_> {
    fn whole(&mut self, plan: LogicalPlan) -> Result<LogicalPlan> {
        self.hoist(plan)?.restored()
    }

    fn hoist(&mut self, plan: LogicalPlan) -> Result<Hoisted> {
        let schema = Arc::clone(plan.schema());
        let (plan, carried) = match self.inside_expressions(plan)? {
            LogicalPlan::Projection(node) => self.projection(node)?,
            LogicalPlan::Filter(node) => {
                let input = self.child(node.input)?;
                self.filter(input, split_conjunction_owned(node.predicate))?
            }
            LogicalPlan::Sort(node) => self.sort(node)?,
            LogicalPlan::Limit(mut node) => {
                let input = self.child(node.input)?;
                node.input = Arc::new(input.plan);
                (LogicalPlan::Limit(node), input.carried)
            }
            LogicalPlan::SubqueryAlias(node) => self.alias(node)?,
            LogicalPlan::Join(node) => self.join(node)?,
            LogicalPlan::Window(node) => self.window(node)?,
            LogicalPlan::Aggregate(node) => (self.aggregate(node)?, vec![]),
            LogicalPlan::Distinct(Distinct::On(node)) => (self.distinct_on(node)?, vec![]),
            // Correlated lateral subqueries wait for the second instance.
            LogicalPlan::Subquery(node) if !node.outer_ref_columns.is_empty() => (LogicalPlan::Subquery(node), vec![]),
            other => (self.other(other)?, vec![]),
        };
        Ok(Hoisted { plan, schema, carried })
    }

    fn child(&mut self, plan: Arc<LogicalPlan>) -> Result<Hoisted> {
        self.hoist(Arc::unwrap_or_clone(plan))
    }

    /// Hoists inside the uncorrelated subqueries of a node's expressions.
    fn inside_expressions(&mut self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let rewritten = plan.map_expressions(|expr| {
            expr.transform_down(|expr| match expr {
                Expr::ScalarSubquery(mut q) => {
                    self.subquery(&mut q)?;
                    Ok(Transformed::yes(Expr::ScalarSubquery(q)))
                }
                Expr::Exists(mut e) => {
                    self.subquery(&mut e.subquery)?;
                    Ok(Transformed::yes(Expr::Exists(e)))
                }
                Expr::InSubquery(mut e) => {
                    self.subquery(&mut e.subquery)?;
                    Ok(Transformed::yes(Expr::InSubquery(e)))
                }
                Expr::SetComparison(mut e) => {
                    self.subquery(&mut e.subquery)?;
                    Ok(Transformed::yes(Expr::SetComparison(e)))
                }
                other => Ok(Transformed::no(other)),
            })
        })?;
        Ok(rewritten.data)
    }

    fn subquery(&mut self, query: &mut Subquery) -> Result<()> {
        if query.outer_ref_columns.is_empty() && plan_calls(&query.subquery)? {
            let plan = defer(query.subquery.as_ref().clone(), self.names)?;
            query.subquery = Arc::new(self.whole(plan)?);
        }
        Ok(())
    }

    fn projection(&mut self, node: Projection) -> Result<(LogicalPlan, Vec<Carried>)> {
        let input = self.child(node.input)?;
        let keep = NamePreserver::new_for_projection();
        let names: Vec<_> = node.expr.iter().map(|e| keep.save(e)).collect();
        let (input, exprs) = self.provide(input, node.expr)?;
        let mut exprs: Vec<Expr> = exprs.into_iter().zip(names).map(|(e, name)| name.restore(e)).collect();
        // Where the columns below come out above; what is not there ends here.
        let mut seen: HashMap<Column, Column> = HashMap::new();
        for (expr, column) in exprs.iter().zip(node.schema.columns()) {
            if let Expr::Column(below) = expr.clone().unalias() {
                seen.entry(below).or_insert(column);
            }
        }
        let mut carried = Vec::new();
        for Carried { call, column } in input.carried {
            let Some(call) = over(&call, &seen)? else { continue };
            if let Some(above) = seen.get(&column) {
                carried.push(Carried { call, column: above.clone() });
            } else {
                exprs.push(Expr::Column(column.clone()));
                carried.push(Carried { call, column });
            }
        }
        Ok((LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input.plan))?), carried))
    }

    /// Cheap conjuncts first; then, call by call in written order, whatever can be decided.
    fn filter(&mut self, input: Hoisted, conjuncts: Vec<Expr>) -> Result<(LogicalPlan, Vec<Carried>)> {
        let (cheap, mut costly): (Vec<_>, Vec<_>) = conjuncts.into_iter().partition(|e| !calls(e));
        let mut current = filtered(input, cheap)?;
        while !costly.is_empty() {
            let (next, exprs) = self.provide_where(current, costly, &|_, _| false)?;
            let (mut ready, waiting): (Vec<_>, Vec<_>) = exprs.into_iter().partition(|e| !calls(e));
            (current, costly) = (next, waiting);
            if ready.is_empty() {
                (current, ready) = self.provide(current, vec![costly.remove(0)])?;
            }
            current = filtered(current, ready)?;
        }
        Ok((current.plan, current.carried))
    }

    fn sort(&mut self, node: Sort) -> Result<(LogicalPlan, Vec<Carried>)> {
        let input = self.child(node.input)?;
        let keys = node.expr.iter().map(|key| key.expr.clone()).collect();
        let (input, keys) = self.provide(input, keys)?;
        let expr = node.expr.into_iter().zip(keys).map(|(old, expr)| old.with_expr(expr)).collect();
        let plan = LogicalPlan::Sort(Sort { expr, input: Arc::new(input.plan), fetch: node.fetch });
        Ok((plan, input.carried))
    }

    fn alias(&mut self, node: SubqueryAlias) -> Result<(LogicalPlan, Vec<Carried>)> {
        let input = self.child(node.input)?;
        let below = input.plan.schema().columns();
        let alias = SubqueryAlias::try_new(Arc::new(input.plan), node.alias)?;
        let seen: HashMap<Column, Column> = below.into_iter().zip(alias.schema.columns()).collect();
        let mut carried = Vec::new();
        for Carried { call, column } in input.carried {
            if let (Some(call), Some(column)) = (over(&call, &seen)?, seen.get(&column)) {
                carried.push(Carried { call, column: column.clone() });
            }
        }
        Ok((LogicalPlan::SubqueryAlias(alias), carried))
    }

    fn window(&mut self, node: Window) -> Result<(LogicalPlan, Vec<Carried>)> {
        let input = self.child(node.input)?;
        let (input, exprs) = self.provide_named(input, node.window_expr)?;
        let window = Window::try_new(exprs, Arc::new(input.plan))?;
        Ok((LogicalPlan::Window(window), input.carried))
    }

    fn aggregate(&mut self, node: Aggregate) -> Result<LogicalPlan> {
        let input = self.child(node.input)?;
        let groups = node.group_expr.len();
        if node.group_expr.iter().any(|e| matches!(e, Expr::GroupingSet(_)) && calls(e)) {
            return plan_err!(
                "a model function inside GROUPING SETS, CUBE or ROLLUP: compute it in a subquery and group by its column"
            );
        }
        let exprs = node.group_expr.into_iter().chain(node.aggr_expr).collect();
        let (input, mut exprs) = self.provide_named(input, exprs)?;
        let aggregates = exprs.split_off(groups);
        Ok(LogicalPlan::Aggregate(Aggregate::try_new(Arc::new(input.plan), exprs, aggregates)?))
    }

    fn distinct_on(&mut self, node: DistinctOn) -> Result<LogicalPlan> {
        let input = self.child(node.input)?;
        let (input, selected) = self.provide_named(input, node.select_expr)?;
        let (input, on) = self.provide(input, node.on_expr)?;
        let keys = node.sort_expr.unwrap_or_default();
        let (input, exprs) = self.provide(input, keys.iter().map(|key| key.expr.clone()).collect())?;
        let sort: Vec<_> = keys.into_iter().zip(exprs).map(|(old, expr)| old.with_expr(expr)).collect();
        let sort = Some(sort).filter(|sort| !sort.is_empty());
        let distinct = DistinctOn::try_new(on, selected, sort, Arc::new(input.plan))?;
        Ok(LogicalPlan::Distinct(Distinct::On(distinct)))
    }

    /// Any other node: its inputs keep their schemas; its own calls are provided by its only input.
    fn other(&mut self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let exprs = plan.expressions();
        if !exprs.iter().any(calls) {
            return Ok(plan.map_children(|input| Ok(Transformed::yes(self.whole(input)?)))?.data);
        }
        let inputs = plan.inputs();
        let [input] = inputs.as_slice() else {
            return plan_err!("model functions cannot be used in {}: use SELECT", plan.display());
        };
        let input = self.hoist((*input).clone())?;
        let (input, exprs) = self.provide_named(input, exprs)?;
        plan.with_new_exprs(exprs, vec![input.plan])
    }

    fn join(&mut self, node: Join) -> Result<(LogicalPlan, Vec<Carried>)> {
        let (left, right) = (self.child(node.left)?, self.child(node.right)?);
        let (left_keys, right_keys) = node.on.into_iter().unzip();
        let (left, left_keys) = self.provide(left, left_keys)?;
        let (right, right_keys) = self.provide(right, right_keys)?;
        let conjuncts = node.filter.into_iter().flat_map(split_conjunction_owned);
        let (above, beside): (Vec<_>, Vec<_>) = conjuncts.partition(|e| spans(e, &left, &right));
        if !above.is_empty() && node.join_type != JoinType::Inner {
            return plan_err!(
                "a model function over both sides of a {} JOIN condition: join first in a subquery, then filter on the call",
                node.join_type.to_string().to_uppercase()
            );
        }
        let (left, beside) = self.provide_where(left, beside, &|input, call| within(call, input))?;
        let (right, mut beside) = self.provide(right, beside)?;
        let filter = beside.drain(..).reduce(Expr::and);
        let on = left_keys.into_iter().zip(right_keys).collect();
        let mut carried = Vec::new();
        let (keep_left, keep_right) = survives(node.join_type);
        carried.extend(left.carried.into_iter().filter(|c| keep_left.keeps(&c.call)));
        carried.extend(right.carried.into_iter().filter(|c| keep_right.keeps(&c.call)));
        let plan = LogicalPlan::Join(Join::try_new(
            Arc::new(left.plan),
            Arc::new(right.plan),
            on,
            filter,
            node.join_type,
            node.join_constraint,
            node.null_equality,
            node.null_aware,
        )?);
        self.filter(Hoisted { plan, schema: node.schema, carried }, above)
    }

    fn provide(&mut self, input: Hoisted, exprs: Vec<Expr>) -> Result<(Hoisted, Vec<Expr>)> {
        self.provide_where(input, exprs, &|_, _| true)
    }

    /// As [`Self::provide`], for expressions that name output columns.
    fn provide_named(&mut self, input: Hoisted, exprs: Vec<Expr>) -> Result<(Hoisted, Vec<Expr>)> {
        let keep = NamePreserver::new_for_projection();
        let names: Vec<_> = exprs.iter().map(|e| keep.save(e)).collect();
        let (input, exprs) = self.provide(input, exprs)?;
        Ok((input, exprs.into_iter().zip(names).map(|(e, name)| name.restore(e)).collect()))
    }

    /// Puts model nodes on top of `input` until every accepted call in `exprs` is a column; returns the expressions over those columns.
    /// Calls of one nesting depth share a node, so that they run at the same time.
    fn provide_where(
        &mut self,
        mut input: Hoisted,
        mut exprs: Vec<Expr>,
        accept: &dyn Fn(&Hoisted, &Expr) -> bool,
    ) -> Result<(Hoisted, Vec<Expr>)> {
        loop {
            let mut wanted: Vec<Call> = Vec::new();
            let replace = |expr: Expr| {
                if called(&expr).is_none() || expr_args(&expr).iter().any(calls) {
                    return Ok(Transformed::no(expr));
                }
                let call = self.resolve(&expr)?;
                if let Some(ready) = input.carried.iter().find(|c| c.call == call) {
                    return Ok(Transformed::yes(Expr::Column(ready.column.clone())));
                }
                if accept(&input, &expr) && !wanted.contains(&call) {
                    wanted.push(call);
                }
                Ok(Transformed::no(expr))
            };
            let mut replace = replace;
            exprs = exprs.into_iter().map(|e| Ok(e.transform_up(&mut replace)?.data)).collect::<Result<_>>()?;
            if wanted.is_empty() {
                return Ok((input, exprs));
            }
            input = self.add_node(input, wanted)?;
        }
    }

    /// Checks a call's arguments and its model.
    fn resolve(&self, expr: &Expr) -> Result<Call> {
        let Some(function) = called(expr) else {
            return plan_err!("not a model function: {expr}");
        };
        let (position, role) = function.model_argument();
        let mut args = expr_args(expr).to_vec();
        let model = if position < args.len() {
            let named = args.remove(position);
            match constant(&named) {
                Some(name) => name,
                None => return plan_err!("{}: the model must be a constant text, not {named}", function.name()),
            }
        } else {
            role.to_owned()
        };
        function.check(self.models, &model)?;
        if let Some(outer) = args.iter().find(|arg| arg.contains_outer()) {
            return plan_err!("{}: {outer} belongs to an outer query that cannot be joined", function.name());
        }
        Ok(Call { function: Arc::clone(function), model, args })
    }

    fn add_node(&mut self, input: Hoisted, wanted: Vec<Call>) -> Result<Hoisted> {
        let mut carried = input.carried;
        let mut model_calls = Vec::with_capacity(wanted.len());
        for call in wanted {
            let output = self.names.next(&format!("__{}", call.function.name()));
            let row_id = self.row_id(input.plan.schema(), &call.args);
            let shown = self.show(&call);
            self.row_ids.insert(output.clone(), row_id.clone());
            self.shown.insert(output.clone(), shown.clone());
            model_calls.push(ModelCall {
                function: Arc::clone(&call.function),
                model: call.model.clone(),
                args: call.args.clone(),
                row_id,
                output: output.clone(),
                shown,
            });
            carried.push(Carried { call, column: Column::new_unqualified(output) });
            self.made += 1;
        }
        let node = ModelNode::try_new(input.plan, model_calls)?;
        let plan = LogicalPlan::Extension(Extension { node: Arc::new(node) });
        Ok(Hoisted { plan, schema: input.schema, carried })
    }

    /// The input's `id` column; of several, the one from the table of the arguments.
    fn row_id(&self, schema: &DFSchemaRef, args: &[Expr]) -> Option<Column> {
        let mut ids = schema.columns();
        ids.retain(|column| {
            column.name == "id"
                && schema.field_from_column(column).is_ok_and(|f| can_cast_types(f.data_type(), &DataType::Utf8))
        });
        if ids.len() <= 1 {
            return ids.pop();
        }
        let used: HashSet<&Column> = args.iter().flat_map(Expr::column_refs).collect();
        let mut used: Vec<&Column> = used.into_iter().collect();
        used.sort();
        used.iter().find_map(|column| match self.row_ids.get(&column.name) {
            Some(row_id) => row_id.clone().filter(|id| ids.contains(id)),
            None => ids.iter().find(|id| id.relation == column.relation).cloned(),
        })
    }

    /// The call in the user's words: columns without their table, nested calls written out.
    fn show(&self, call: &Call) -> String {
        let plain = |expr: Expr| {
            Ok(match expr {
                Expr::Column(c) => {
                    let name = self.shown.get(&c.name).cloned();
                    let name = name.unwrap_or_else(|| argument_name(&c.name).to_owned());
                    Transformed::yes(Expr::Column(Column::new_unqualified(name)))
                }
                other => Transformed::no(other),
            })
        };
        let args = call.args.iter().map(|arg| match arg.clone().transform_up(plain) {
            Ok(arg) => arg.data.human_display().to_string(),
            Err(_) => arg.human_display().to_string(),
        });
        format!("{}({})", call.function.name(), args.collect::<Vec<_>>().join(", "))
    }
}

fn filtered(input: Hoisted, conjuncts: Vec<Expr>) -> Result<Hoisted> {
    let Some(predicate) = conjuncts.into_iter().reduce(Expr::and) else { return Ok(input) };
    let plan = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input.plan))?);
    Ok(Hoisted { plan, ..input })
}

fn expr_args(expr: &Expr) -> &[Expr] {
    match expr {
        Expr::ScalarFunction(call) => &call.args,
        _ => &[],
    }
}

/// The text of a constant expression, if it is one.
fn constant(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Literal(value, _) => value.try_as_str().flatten().map(str::to_owned),
        Expr::Alias(alias) => constant(&alias.expr),
        Expr::Cast(cast) => constant(&cast.expr),
        _ => None,
    }
}

/// The call with its columns renamed; None where one is gone.
fn over(call: &Call, seen: &HashMap<Column, Column>) -> Result<Option<Call>> {
    let mut gone = false;
    let rename = |expr: Expr| {
        Ok(match expr {
            Expr::Column(below) => match seen.get(&below) {
                Some(above) => Transformed::yes(Expr::Column(above.clone())),
                None => {
                    gone = true;
                    Transformed::no(Expr::Column(below))
                }
            },
            other => Transformed::no(other),
        })
    };
    let mut rename = rename;
    let args: Vec<Expr> =
        call.args.iter().map(|a| Ok(a.clone().transform_up(&mut rename)?.data)).collect::<Result<_>>()?;
    Ok((!gone).then(|| Call { args, ..call.clone() }))
}

fn within(call: &Expr, input: &Hoisted) -> bool {
    call.column_refs().iter().all(|column| input.plan.schema().has_column(column))
}

/// Whether some call of a join condition reads both sides.
fn spans(condition: &Expr, left: &Hoisted, right: &Hoisted) -> bool {
    condition.exists(|e| Ok(called(e).is_some() && !within(e, left) && !within(e, right))).unwrap_or(false)
}

/// What happens to the generated columns of one side of a join.
enum Side {
    /// They stay what they are.
    Kept,
    /// They become NULL where the side has no match. So would the call if it reads a plain column: NULL in, NULL out.
    Padded,
    /// The side is not in the output.
    Gone,
}
impl Side {
    fn keeps(&self, call: &Call) -> bool {
        match self {
            Self::Kept => true,
            Self::Padded => call.args.iter().any(|arg| matches!(arg, Expr::Column(_))),
            Self::Gone => false,
        }
    }
}

fn survives(join: JoinType) -> (Side, Side) {
    use Side::{Gone, Kept, Padded};
    match join {
        JoinType::Inner => (Kept, Kept),
        JoinType::Left => (Kept, Padded),
        JoinType::Right => (Padded, Kept),
        JoinType::Full => (Padded, Padded),
        JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => (Kept, Gone),
        JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => (Gone, Kept),
    }
}
