//! Hoisting at each kind of plan node with one input; joins are in `join.rs`.

use super::{
    Hoister,
    call::{Carried, Hoisted, filtered, over},
    calls,
};
use datafusion::{
    common::{
        Column, Result, plan_err,
        tree_node::{Transformed, TreeNode},
    },
    logical_expr::{
        Aggregate, Distinct, DistinctOn, Expr, LogicalPlan, Projection, Sort, SubqueryAlias, Window,
        expr_rewriter::NamePreserver,
    },
};
use std::{collections::HashMap, sync::Arc};

impl Hoister<'_> {
    pub(super) fn projection(&mut self, node: Projection) -> Result<(LogicalPlan, Vec<Carried>)> {
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
    pub(super) fn filter(&mut self, input: Hoisted, conjuncts: Vec<Expr>) -> Result<(LogicalPlan, Vec<Carried>)> {
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

    pub(super) fn sort(&mut self, node: Sort) -> Result<(LogicalPlan, Vec<Carried>)> {
        let input = self.child(node.input)?;
        let keys = node.expr.iter().map(|key| key.expr.clone()).collect();
        let (input, keys) = self.provide(input, keys)?;
        let expr = node.expr.into_iter().zip(keys).map(|(old, expr)| old.with_expr(expr)).collect();
        let plan = LogicalPlan::Sort(Sort { expr, input: Arc::new(input.plan), fetch: node.fetch });
        Ok((plan, input.carried))
    }

    pub(super) fn alias(&mut self, node: SubqueryAlias) -> Result<(LogicalPlan, Vec<Carried>)> {
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

    pub(super) fn window(&mut self, node: Window) -> Result<(LogicalPlan, Vec<Carried>)> {
        let input = self.child(node.input)?;
        let (input, exprs) = self.provide_named(input, node.window_expr)?;
        let window = Window::try_new(exprs, Arc::new(input.plan))?;
        Ok((LogicalPlan::Window(window), input.carried))
    }

    pub(super) fn aggregate(&mut self, node: Aggregate) -> Result<LogicalPlan> {
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

    pub(super) fn distinct_on(&mut self, node: DistinctOn) -> Result<LogicalPlan> {
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
    pub(super) fn other(&mut self, plan: LogicalPlan) -> Result<LogicalPlan> {
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
}
