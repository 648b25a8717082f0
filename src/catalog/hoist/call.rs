//! A model call, the column that holds its result, and a plan that offers such columns.

use crate::udf::ModelFunction;
use datafusion::{
    common::{
        Column, DFSchemaRef, Result,
        tree_node::{Transformed, TreeNode},
    },
    logical_expr::{Expr, Filter, LogicalPlan, Projection},
};
use std::{collections::HashMap, sync::Arc};

/// A call, ready to be compared: the model is resolved, the arguments are expressions over the columns at hand.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) function: Arc<dyn ModelFunction>,
    pub(super) model: String,
    pub(super) args: Vec<Expr>,
}

impl PartialEq for Call {
    fn eq(&self, other: &Self) -> bool {
        self.function.name() == other.function.name() && self.model == other.model && self.args == other.args
    }
}

/// A generated column that the plan offers.
#[derive(Debug, Clone)]
pub(super) struct Carried {
    pub(super) call: Call,
    pub(super) column: Column,
}

/// A plan without calls. Its schema may hold generated columns besides those of `schema`.
pub(super) struct Hoisted {
    pub(super) plan: LogicalPlan,
    pub(super) schema: DFSchemaRef,
    pub(super) carried: Vec<Carried>,
}

impl Hoisted {
    /// Drops generated columns.
    pub(super) fn restored(self) -> Result<LogicalPlan> {
        if self.plan.schema().fields().len() == self.schema.fields().len() {
            return Ok(self.plan);
        }
        let columns = self.schema.columns().into_iter().map(Expr::Column).collect();
        Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(self.plan))?))
    }
}

pub(super) fn filtered(input: Hoisted, conjuncts: Vec<Expr>) -> Result<Hoisted> {
    let Some(predicate) = conjuncts.into_iter().reduce(Expr::and) else { return Ok(input) };
    let plan = LogicalPlan::Filter(Filter::try_new(predicate, Arc::new(input.plan))?);
    Ok(Hoisted { plan, ..input })
}

/// The call with its columns renamed; None where one is gone.
pub(super) fn over(call: &Call, seen: &HashMap<Column, Column>) -> Result<Option<Call>> {
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
