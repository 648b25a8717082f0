//! Whether a query works row by row on one table, so that a stage can be cut into ranges of that table's rows.

use datafusion::{
    common::tree_node::{TreeNode, TreeNodeRecursion},
    logical_expr::{Expr, LogicalPlan},
};

/// The single scanned table, if every node above it is a projection, a filter, an alias or a model node, and no expression looks at
/// other rows. Takes plans before and after optimization.
pub fn row_local_table(plan: &LogicalPlan) -> Option<String> {
    let mut own_rows = true;
    plan.apply_expressions(|expr| {
        expr.apply(|e| {
            own_rows &= !matches!(
                e,
                Expr::ScalarSubquery(_)
                    | Expr::Exists(_)
                    | Expr::InSubquery(_)
                    | Expr::SetComparison(_)
                    | Expr::Unnest(_)
            );
            Ok(TreeNodeRecursion::Continue)
        })
    })
    .ok()?;
    if !own_rows {
        return None;
    }
    match plan {
        LogicalPlan::Projection(node) => row_local_table(&node.input),
        LogicalPlan::Filter(node) => row_local_table(&node.input),
        LogicalPlan::SubqueryAlias(node) => row_local_table(&node.input),
        LogicalPlan::Extension(node) => {
            let model: &super::model_node::ModelNode = node.node.as_any().downcast_ref()?;
            row_local_table(model.input())
        }
        LogicalPlan::TableScan(scan) if scan.fetch.is_none() => Some(scan.table_name.table().to_owned()),
        _ => None,
    }
}
