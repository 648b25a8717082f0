//! Calls in join conditions: below the side that they read, or as a filter above the join; and which generated columns a join lets through.

use super::{
    Hoister,
    call::{Call, Carried, Hoisted},
    called,
};
use datafusion::{
    common::{Result, plan_err, tree_node::TreeNode},
    logical_expr::{Expr, Join, JoinType, LogicalPlan, utils::split_conjunction_owned},
};
use std::sync::Arc;

impl Hoister<'_> {
    pub(super) fn join(&mut self, node: Join) -> Result<(LogicalPlan, Vec<Carried>)> {
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
