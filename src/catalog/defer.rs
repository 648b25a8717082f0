//! Before hoisting: makes the model calls of a limited query wait until the limit has chosen the rows.
//!
//! `SELECT rephrase(text) FROM t ORDER BY id LIMIT 10` is planned as Limit over Sort over Projection: the calls come before the sort, for
//! every row of the table. Calls that the sort does not look at are moved into a projection above the limit, so that they run on 10 rows.
//! Knows nothing of how calls are run.

use super::hoist::{called, calls};
use datafusion::{
    common::{
        Column, Result,
        alias::AliasGenerator,
        tree_node::{Transformed, TreeNode},
    },
    logical_expr::{Expr, Limit, LogicalPlan, Projection, Sort, SubqueryAlias, Volatility},
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// Begins the names of columns that are kept for calls that wait.
const ARGUMENT: &str = "__argument";

/// The user's name of a column that was kept for a call that waits.
pub(super) fn argument_name(name: &str) -> &str {
    let number = name.strip_prefix(ARGUMENT).and_then(|rest| rest.strip_prefix('_'));
    number.and_then(|rest| rest.split_once('_')).map_or(name, |(_, name)| name)
}

/// Moves limits below projections, and deferrable calls above limited sorts. The output schema stays.
pub(super) fn defer(plan: LogicalPlan, names: &AliasGenerator) -> Result<LogicalPlan> {
    let deferred = plan.transform_down(|node| match node {
        LogicalPlan::Limit(limit) => Ok(Transformed::yes(lower(limit, names)?)),
        other => Ok(Transformed::no(other)),
    })?;
    Ok(deferred.data)
}

fn lower(limit: Limit, names: &AliasGenerator) -> Result<LogicalPlan> {
    let below = |input: Arc<LogicalPlan>, limit: &Limit| {
        lower(Limit { skip: limit.skip.clone(), fetch: limit.fetch.clone(), input }, names).map(Arc::new)
    };
    Ok(match limit.input.as_ref() {
        LogicalPlan::Projection(p) => {
            let input = below(Arc::clone(&p.input), &limit)?;
            LogicalPlan::Projection(Projection::try_new_with_schema(p.expr.clone(), input, Arc::clone(&p.schema))?)
        }
        LogicalPlan::SubqueryAlias(a) => {
            let input = below(Arc::clone(&a.input), &limit)?;
            LogicalPlan::SubqueryAlias(SubqueryAlias::try_new(input, a.alias.clone())?)
        }
        LogicalPlan::Sort(sort) => match split(sort, names)? {
            Some((outer, sort)) => {
                let limit = Limit { input: Arc::new(LogicalPlan::Sort(sort)), ..limit };
                LogicalPlan::Projection(Projection::try_new(outer, Arc::new(LogicalPlan::Limit(limit)))?)
            }
            None => LogicalPlan::Limit(limit),
        },
        _ => LogicalPlan::Limit(limit),
    })
}

/// Splits the projection below a sort into what the sort needs and, returned first, what can wait.
fn split(sort: &Sort, names: &AliasGenerator) -> Result<Option<(Vec<Expr>, Sort)>> {
    let outputs = sort.input.schema().columns();
    let Some((exprs, base)) = flatten(&sort.input)? else { return Ok(None) };
    let keys: BTreeSet<Column> = sort.expr.iter().flat_map(|key| key.expr.column_refs()).cloned().collect();
    let waits: Vec<bool> = exprs.iter().zip(&outputs).map(|(e, out)| calls(e) && !keys.contains(out)).collect();
    if !waits.contains(&true) {
        return Ok(None);
    }
    let mut inner = Vec::new();
    let mut at: HashMap<Column, Column> = HashMap::new();
    for ((expr, output), _) in exprs.iter().zip(&outputs).zip(&waits).filter(|(_, waits)| !**waits) {
        if let Expr::Column(column) = expr {
            at.entry(column.clone()).or_insert_with(|| output.clone());
        }
        inner.push(named(expr.clone(), output));
    }
    let mut needed: BTreeSet<Column> = BTreeSet::new();
    for (expr, _) in exprs.iter().zip(&waits).filter(|(_, waits)| **waits) {
        needed.extend(expr.column_refs().into_iter().cloned());
    }
    if !outputs.iter().zip(&waits).any(|(out, waits)| out.name == "id" && !waits) {
        // The rows' names, for the report of failures.
        let mut ids = base.schema().columns().into_iter().filter(|c| c.name == "id");
        if let (Some(id), None) = (ids.next(), ids.next()) {
            inner.push(Expr::Column(id.clone()));
            at.insert(id.clone(), id);
        }
    }
    for column in needed {
        if !at.contains_key(&column) {
            let alias = format!("{}_{}", names.next(ARGUMENT), column.name);
            at.insert(column.clone(), Column::new_unqualified(&alias));
            inner.push(Expr::Column(column).alias(alias));
        }
    }
    let mut outer = Vec::with_capacity(exprs.len());
    for ((expr, output), waits) in exprs.into_iter().zip(&outputs).zip(waits) {
        outer.push(if waits { named(substitute(expr, &at)?, output) } else { Expr::Column(output.clone()) });
    }
    let input = Arc::new(LogicalPlan::Projection(Projection::try_new(inner, base)?));
    Ok(Some((outer, Sort { expr: sort.expr.clone(), input, fetch: sort.fetch })))
}

fn substitute(expr: Expr, at: &HashMap<Column, Column>) -> Result<Expr> {
    let replaced = expr.transform_up(|e| {
        Ok(match &e {
            Expr::Column(c) => match at.get(c) {
                Some(c) => Transformed::yes(Expr::Column(c.clone())),
                None => Transformed::no(e),
            },
            _ => Transformed::no(e),
        })
    })?;
    Ok(replaced.data)
}

fn named(expr: Expr, output: &Column) -> Expr {
    match &expr {
        Expr::Column(c) if c == output => expr,
        _ => expr.alias_qualified(output.relation.clone(), output.name.clone()),
    }
}

/// A chain of projections and aliases as one list of expressions over what lies below. None without a projection, or where an expression
/// must not be copied.
fn flatten(plan: &LogicalPlan) -> Result<Option<(Vec<Expr>, Arc<LogicalPlan>)>> {
    match plan {
        LogicalPlan::Projection(p) => {
            if p.expr.iter().any(unsteady) {
                return Ok(None);
            }
            let own: Vec<Expr> = p.expr.iter().map(|e| e.clone().unalias()).collect();
            let Some((below, base)) = flatten(&p.input)? else {
                return Ok(Some((own, Arc::clone(&p.input))));
            };
            let known: HashMap<Column, Expr> = p.input.schema().columns().into_iter().zip(below).collect();
            let inlined = own.into_iter().map(|e| inline(e, &known)).collect::<Result<_>>()?;
            Ok(Some((inlined, base)))
        }
        LogicalPlan::SubqueryAlias(a) => flatten(&a.input),
        _ => Ok(None),
    }
}

fn inline(expr: Expr, known: &HashMap<Column, Expr>) -> Result<Expr> {
    let inlined = expr.transform_up(|e| {
        Ok(match &e {
            Expr::Column(c) => match known.get(c) {
                Some(below) => Transformed::yes(below.clone()),
                None => Transformed::no(e),
            },
            _ => Transformed::no(e),
        })
    })?;
    Ok(inlined.data)
}

/// Whether copying the expression could change its value (random numbers and the like; model calls are steady).
fn unsteady(expr: &Expr) -> bool {
    let volatile = |e: &Expr| match e {
        Expr::ScalarFunction(f) => called(e).is_none() && f.func.signature().volatility == Volatility::Volatile,
        _ => false,
    };
    expr.exists(|e| Ok(volatile(e))).unwrap_or(true)
}
