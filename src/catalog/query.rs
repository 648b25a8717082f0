//! SQL text, before any plan: parsing one statement, putting parameters in; and DataFusion's errors in words. What a pipeline needs to
//! know of a text is in `pipeline::sqlscan`.

use anyhow::{Result, bail};
use datafusion::{
    common::{ScalarValue, TableReference},
    error::DataFusionError,
    sql::{
        parser::{DFParser, Statement},
        resolve::resolve_table_references,
        sqlparser::{
            ast::{self, AccessExpr, Expr, UnaryOperator, Value, visit_expressions_mut},
            parser::ParserError,
        },
    },
};
use std::{collections::BTreeMap, ops::ControlFlow};

/// Parses exactly one statement and puts the values of `$name` in.
///
/// # Errors
/// Syntax errors with their position; no statement, or several; a parameter without a value.
pub(super) fn parse(query: &str, params: &BTreeMap<String, ScalarValue>) -> Result<Statement> {
    let mut statements = DFParser::parse_sql(query).map_err(sql_error)?;
    let Some(mut statement) = statements.pop_front() else { bail!("there is no statement") };
    if !statements.is_empty() {
        bail!("there are {} statements; give one", statements.len() + 1);
    }
    match ast_of(&mut statement) {
        Some(ast) if reads(ast) => bind(ast, params)?,
        _ => bail!("{READ_ONLY}"),
    }
    Ok(statement)
}

/// What is said of any other statement.
pub(super) const READ_ONLY: &str = "only queries are allowed: SELECT, WITH, VALUES, EXPLAIN, SHOW TABLES, DESCRIBE";

fn reads(ast: &ast::Statement) -> bool {
    use ast::Statement::{ExplainTable, Query, ShowColumns, ShowFunctions, ShowTables};
    match ast {
        Query(_) | ExplainTable { .. } | ShowColumns { .. } | ShowFunctions { .. } | ShowTables { .. } => true,
        ast::Statement::Explain { statement, .. } => reads(statement),
        _ => false,
    }
}

fn ast_of(statement: &mut Statement) -> Option<&mut ast::Statement> {
    match statement {
        Statement::Statement(ast) => Some(ast),
        Statement::Explain(explain) => ast_of(&mut explain.statement),
        _ => None,
    }
}

/// Replaces placeholders by literals, so that types are inferred as if the value had been written out; and reads fields by name.
fn bind(ast: &mut ast::Statement, params: &BTreeMap<String, ScalarValue>) -> Result<()> {
    let replaced = visit_expressions_mut(ast, |expr| {
        if let Expr::CompoundFieldAccess { access_chain, .. } = expr {
            access_chain.iter_mut().for_each(by_name);
        }
        let Expr::Value(value) = expr else { return ControlFlow::Continue(()) };
        let Value::Placeholder(name) = &value.value else { return ControlFlow::Continue(()) };
        let name = name.trim_start_matches('$');
        match params.get(name).map(literal) {
            Some(Ok(literal)) => *expr = literal,
            Some(Err(error)) => return ControlFlow::Break(error.context(format!("parameter ${name}"))),
            None => return ControlFlow::Break(unset(name, params)),
        }
        ControlFlow::Continue(())
    });
    match replaced {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(error) => Err(error),
    }
}

/// `(call(x)).field` means `call(x)['field']`; DataFusion reads only the latter.
fn by_name(access: &mut AccessExpr) {
    if let AccessExpr::Dot(Expr::Identifier(field)) = access {
        let name = match field.quote_style {
            None => field.value.to_lowercase(),
            Some(_) => field.value.clone(),
        };
        *access = AccessExpr::Dot(Expr::Value(Value::SingleQuotedString(name).into()));
    }
}

fn unset(name: &str, params: &BTreeMap<String, ScalarValue>) -> anyhow::Error {
    let known: Vec<String> = params.keys().map(|name| format!("${name}")).collect();
    let known = if known.is_empty() { "none is".to_owned() } else { format!("set are: {}", known.join(", ")) };
    anyhow::anyhow!("parameter ${name} is not set; {known}")
}

fn literal(value: &ScalarValue) -> Result<Expr> {
    let number = |text: String| match text.strip_prefix('-') {
        Some(positive) => Expr::Nested(Box::new(Expr::UnaryOp {
            op: UnaryOperator::Minus,
            expr: Box::new(Expr::Value(Value::Number(positive.to_owned(), false).into())),
        })),
        None => Expr::Value(Value::Number(text, false).into()),
    };
    if value.is_null() {
        return Ok(Expr::Value(Value::Null.into()));
    }
    if let Some(Some(text)) = value.try_as_str() {
        return Ok(Expr::Value(Value::SingleQuotedString(text.to_owned()).into()));
    }
    Ok(match value {
        ScalarValue::Boolean(Some(value)) => Expr::Value(Value::Boolean(*value).into()),
        ScalarValue::Float32(Some(v)) if v.is_finite() => number(float(f64::from(*v))),
        ScalarValue::Float64(Some(v)) if v.is_finite() => number(float(*v)),
        other if other.data_type().is_integer() => number(other.to_string()),
        other => bail!("a value of type {} cannot be put into SQL", other.data_type()),
    })
}

/// A float that is read back as a float, with the same value.
fn float(value: f64) -> String {
    format!("{value:?}")
}

/// Tables that the statement names, common table expressions excluded.
pub(super) fn table_references(statement: &Statement) -> Result<Vec<TableReference>> {
    Ok(resolve_table_references(statement, true).map_err(sql_error)?.0)
}

/// A planning error with its position and its hints, without the names of the rules it went through.
pub(super) fn sql_error(error: DataFusionError) -> anyhow::Error {
    let cause = match error.find_root() {
        DataFusionError::SQL(fault, _) => match fault.as_ref() {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => format!("syntax error: {text}"),
            ParserError::RecursionLimitExceeded => "the query is nested too deeply".to_owned(),
        },
        root @ DataFusionError::SchemaError(..) => {
            let text = root.strip_backtrace();
            text.strip_prefix("Schema error: ").map(str::to_owned).unwrap_or(text)
        }
        root => root.message().into_owned(),
    };
    let cause = argument_refused(&cause).unwrap_or(cause);
    let cause = struct_misused(&cause).unwrap_or(cause);
    let Some(diagnostic) = error.diagnostic() else { return anyhow::anyhow!("{cause}") };
    let place = diagnostic.span.map(|span| format!("line {}, column {}: ", span.start.line, span.start.column));
    let helps = diagnostic.helps.iter().map(|help| format!("; {}", help.message));
    anyhow::anyhow!("{}{cause}{}", place.unwrap_or_default(), helps.collect::<String>())
}

/// What one of our functions says of its arguments, without the signatures that DataFusion puts around it.
fn argument_refused(cause: &str) -> Option<String> {
    let (_, said) = cause.split_once("user-defined coercion failed with: Error during planning: ")?;
    Some(said.split(". No function matches").next().unwrap_or(said).to_owned())
}

/// What to write where a message says that something cannot take a struct: the functions here give several, and DataFusion tells its types
/// and signatures only.
fn struct_misused(cause: &str) -> Option<String> {
    let fields = &cause[cause.find("Struct(")? + "Struct(".len()..];
    // `"name": Type` or `"name": non-null Type`, separated by commas, up to the bracket that closes the struct.
    let (mut names, mut depth) = (Vec::new(), 0);
    for (i, part) in fields.split('"').enumerate() {
        if i % 2 == 1 {
            if depth == 0 {
                names.push(part);
            }
            continue;
        }
        depth += part.matches('(').count();
        match depth.checked_sub(part.matches(')').count()) {
            Some(inside) => depth = inside,
            None => break,
        }
    }
    let first = names.first()?;
    let quoted = |lead: &str| cause.split_once(lead).and_then(|(_, rest)| rest.split_once('\'').map(|(name, _)| name));
    let function = quoted("Function '").or_else(|| quoted("call to '"));
    let example = function.map_or_else(|| format!("(…).{first}"), |name| format!("{name}((…).{first})"));
    let place =
        function.map_or_else(|| "a plain value is needed".to_owned(), |name| format!("{name} needs a plain value"));
    Some(format!(
        "{place}, and this is a struct with the fields {}: take one of them, as in {example}",
        names.join(", ")
    ))
}
