//! The optimizer rule that drops model calls whose column nobody reads: `SELECT id FROM (SELECT id, rephrase(text) FROM t)` calls no model.
//! DataFusion prunes columns of projections and scans itself; a generated column belongs to [`ModelNode`].

use super::model_node::ModelNode;
use datafusion::{
    common::{
        Result,
        tree_node::{Transformed, TreeNode, TreeNodeRecursion},
    },
    logical_expr::{Expr, Extension, LogicalPlan},
    optimizer::{OptimizerConfig, OptimizerRule},
};
use std::collections::HashSet;

/// The rule; see the top of the file. Runs last, when projections have been pruned.
#[derive(Debug)]
pub struct PruneModelCalls;

impl OptimizerRule for PruneModelCalls {
    fn name(&self) -> &str {
        "prune_model_calls"
    }
    fn rewrite(&self, mut plan: LogicalPlan, _: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let mut changed = false;
        // A dropped call may have been the only reader of another.
        loop {
            let read = columns_read(&plan)?;
            let pruned = plan.transform_up(|node| prune(node, &read))?;
            plan = pruned.data;
            if !pruned.transformed {
                break;
            }
            changed = true;
            plan = plan.transform_up(|node| node.recompute_schema().map(Transformed::yes))?.data;
        }
        Ok(if changed { Transformed::yes(plan) } else { Transformed::no(plan) })
    }
}

fn model_node(plan: &LogicalPlan) -> Option<&ModelNode> {
    match plan {
        LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref(),
        _ => None,
    }
}

/// Names of all columns that some expression, or the query's result, mentions. Names of generated columns are unique.
fn columns_read(plan: &LogicalPlan) -> Result<HashSet<String>> {
    let mut read: HashSet<String> = plan.schema().fields().iter().map(|f| f.name().clone()).collect();
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|e| {
                if let Expr::Column(c) | Expr::OuterReferenceColumn(_, c) = e {
                    read.insert(c.name.clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(read)
}

fn prune(node: LogicalPlan, read: &HashSet<String>) -> Result<Transformed<LogicalPlan>> {
    let Some(model) = model_node(&node) else { return Ok(Transformed::no(node)) };
    let kept: Vec<_> = model.calls().iter().filter(|call| read.contains(&call.output)).cloned().collect();
    if kept.len() == model.calls().len() {
        return Ok(Transformed::no(node));
    }
    let input = model.input().clone();
    if kept.is_empty() {
        return Ok(Transformed::yes(input));
    }
    let node = std::sync::Arc::new(ModelNode::try_new(input, kept)?);
    Ok(Transformed::yes(LogicalPlan::Extension(Extension { node })))
}
