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

use super::defer::defer;
use crate::udf::{ModelFunction, model_udf::ModelUdf, models::Models};
use call::Hoisted;
use datafusion::{
    common::{
        Column, Result,
        alias::AliasGenerator,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Distinct, Expr, LogicalPlan, Subquery, utils::split_conjunction_owned},
    optimizer::{OptimizerConfig, OptimizerRule},
};
use std::{collections::HashMap, sync::Arc};

mod call;
mod join;
mod nodes;
mod provide;

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
        Expr::ScalarFunction(call) => ModelUdf::of(&call.func, call.args.len()),
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

    pub(super) fn child(&mut self, plan: Arc<LogicalPlan>) -> Result<Hoisted> {
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
}
