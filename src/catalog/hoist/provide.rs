//! Calls become columns: finds them in expressions, checks models and arguments, and puts model nodes below.

use super::{
    Hoister,
    call::{Call, Carried, Hoisted},
    called, calls,
};
use crate::catalog::{
    defer::argument_name,
    model_node::{ModelCall, ModelNode},
};
use arrow::{compute::can_cast_types, datatypes::DataType};
use datafusion::{
    common::{
        Column, DFSchemaRef, ExprSchema, Result, plan_err,
        tree_node::{Transformed, TreeNode},
    },
    logical_expr::{Expr, Extension, LogicalPlan, expr_rewriter::NamePreserver},
};
use std::{collections::HashSet, sync::Arc};

impl Hoister<'_> {
    pub(super) fn provide(&mut self, input: Hoisted, exprs: Vec<Expr>) -> Result<(Hoisted, Vec<Expr>)> {
        self.provide_where(input, exprs, &|_, _| true)
    }

    /// As [`Self::provide`], for expressions that name output columns.
    pub(super) fn provide_named(&mut self, input: Hoisted, exprs: Vec<Expr>) -> Result<(Hoisted, Vec<Expr>)> {
        let keep = NamePreserver::new_for_projection();
        let names: Vec<_> = exprs.iter().map(|e| keep.save(e)).collect();
        let (input, exprs) = self.provide(input, exprs)?;
        Ok((input, exprs.into_iter().zip(names).map(|(e, name)| name.restore(e)).collect()))
    }

    /// Puts model nodes on top of `input` until every accepted call in `exprs` is a column; returns the expressions over those columns.
    /// Calls of one nesting depth share a node, so that they run at the same time.
    pub(super) fn provide_where(
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
        function.check_model(self.models, &model)?;
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
