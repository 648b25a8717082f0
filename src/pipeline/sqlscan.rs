//! What a SQL text names, each with its position: tables, parameters, functions with their literal arguments. Parses with
//! DataFusion's own dialect; plans nothing and knows no schema.

use datafusion::{
    error::DataFusionError,
    sql::{
        parser::{DFParser, Statement as Parsed},
        sqlparser::{
            ast::{
                Expr, Function, FunctionArg, FunctionArgExpr, FunctionArguments, Ident, ObjectName, Query, Statement,
                TableFactor, Value, ValueWithSpan, Visit, Visitor,
            },
            dialect::GenericDialect,
            parser::ParserError,
            tokenizer::Span,
        },
    },
};
use regex::Regex;
use std::{collections::BTreeSet, ops::ControlFlow, sync::LazyLock};

/// A name in the text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The name, or the value of a text literal.
    pub name: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

/// A function call; an argument that is a text literal keeps its value and position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub function: Name,
    /// Its arguments in order; None where one is not a text literal.
    pub args: Vec<Option<Name>>,
}

/// Everything that one statement names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// Tables that are not common table expressions, as written (unquoted names in lower case). In order of position.
    pub tables: Vec<Name>,
    /// `$name` without the dollar.
    pub params: Vec<Name>,
    /// Function calls.
    pub calls: Vec<Call>,
}

/// A text that is not one SELECT statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// 0 where the position is not known.
    pub line: usize,
    /// From 1, in characters; 0 where the position is not known.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

/// Parses one read-only statement.
///
/// # Errors
/// A syntax error, more than one statement, or a statement that is not a query.
pub fn scan(sql: &str) -> Result<Scan, Malformed> {
    let statements = DFParser::parse_sql_with_dialect(sql, &GenericDialect {}).map_err(|e| syntax(&e))?;
    let whole = |message: String| Malformed { line: 1, column: 1, message };
    if statements.len() > 1 {
        return Err(whole(format!(
            "{} statements, where one SELECT is expected; split them into stages",
            statements.len()
        )));
    }
    let Some(statement) = statements.front() else {
        return Err(whole("there is no statement; write one SELECT".into()));
    };
    let Parsed::Statement(statement) = statement else {
        return Err(whole("not a query; write one SELECT".into()));
    };
    if !matches!(**statement, Statement::Query(_)) {
        return Err(whole("not a query; write one SELECT".into()));
    }
    let mut collector = Collector::default();
    let _ = statement.visit(&mut collector);
    Ok(collector.finish())
}

/// The parser writes the position at the end of its message.
fn syntax(error: &DataFusionError) -> Malformed {
    static POSITION: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"(?s)^(.*?)(?: at Line: (\d+), Column: (\d+))?$").expect("a constant pattern"));
    let text = match error {
        DataFusionError::Diagnostic(_, inner) | DataFusionError::Context(_, inner) => return syntax(inner),
        DataFusionError::SQL(parser, _) => match parser.as_ref() {
            ParserError::ParserError(text) | ParserError::TokenizerError(text) => text.clone(),
            other @ ParserError::RecursionLimitExceeded => other.to_string(),
        },
        other => other.strip_backtrace(),
    };
    let parts = POSITION.captures(&text);
    let number = |i: usize| parts.as_ref().and_then(|c| c.get(i)).and_then(|m| m.as_str().parse().ok()).unwrap_or(0);
    let message = parts.as_ref().and_then(|c| c.get(1)).map_or(text.as_str(), |m| m.as_str());
    Malformed { line: number(2), column: number(3), message: format!("SQL syntax: {}", lower_first(message)) }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

#[derive(Default)]
struct Collector {
    tables: BTreeSet<Name>,
    params: BTreeSet<Name>,
    calls: Vec<Call>,
    ctes: Vec<String>,
}

impl Collector {
    fn finish(self) -> Scan {
        let by_place = |names: BTreeSet<Name>| {
            let mut names: Vec<Name> = names.into_iter().collect();
            names.sort_by_key(|n| (n.line, n.column));
            names
        };
        let mut calls = self.calls;
        calls.sort_by_key(|c| (c.function.line, c.function.column));
        calls.dedup();
        Scan { tables: by_place(self.tables), params: by_place(self.params), calls }
    }
    fn call(&mut self, function: &Function) {
        let FunctionArguments::List(list) = &function.args else { return };
        let args = list.args.iter().map(literal).collect();
        self.calls.push(Call { function: object_name(&function.name), args });
    }
}

impl Visitor for Collector {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if let Some(with) = &query.with {
            for cte in &with.cte_tables {
                // A common table expression does not see itself (unless recursive), so `WITH t AS (SELECT * FROM t)` reads
                // the table t: look inside before the name is hidden.
                if !with.recursive {
                    cte.visit(self)?;
                }
                self.ctes.push(normal(&cte.alias.name));
            }
        }
        ControlFlow::Continue(())
    }
    fn post_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let hidden = query.with.as_ref().map_or(0, |with| with.cte_tables.len());
        self.ctes.truncate(self.ctes.len() - hidden);
        ControlFlow::Continue(())
    }
    fn pre_visit_table_factor(&mut self, factor: &TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, args: None, .. } = factor {
            let table = object_name(name);
            if !self.ctes.contains(&table.name) && !table.name.starts_with("information_schema.") {
                self.tables.insert(table);
            }
        }
        ControlFlow::Continue(())
    }
    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr {
            self.call(function);
        }
        ControlFlow::Continue(())
    }
    fn pre_visit_value(&mut self, value: &ValueWithSpan) -> ControlFlow<()> {
        if let Value::Placeholder(name) = &value.value {
            self.params.insert(at(name.trim_start_matches('$').to_owned(), value.span));
        }
        ControlFlow::Continue(())
    }
}

fn at(name: String, span: Span) -> Name {
    Name { name, line: span.start.line as usize, column: span.start.column as usize }
}

/// As DataFusion reads it: lower case unless quoted.
fn normal(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

fn object_name(name: &ObjectName) -> Name {
    let parts: Vec<&Ident> = name.0.iter().filter_map(|part| part.as_ident()).collect();
    let text = parts.iter().map(|ident| normal(ident)).collect::<Vec<_>>().join(".");
    at(text, parts.first().map_or_else(Span::empty, |ident| ident.span))
}

fn literal(arg: &FunctionArg) -> Option<Name> {
    let FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Value(value))) = arg else { return None };
    match &value.value {
        Value::SingleQuotedString(text) => Some(at(text.clone(), value.span)),
        _ => None,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn names(names: &[Name]) -> Vec<String> {
        names.iter().map(|n| format!("{}@{}:{}", n.name, n.line, n.column)).collect()
    }

    #[test]
    fn tables_without_those_of_with_clauses() {
        let sql = "WITH a AS (SELECT * FROM a JOIN Big b ON true),\n c AS (SELECT 1)\nSELECT * FROM a, c, \"Odd\", range(3)\n\
                   WHERE x IN (SELECT y FROM inner_one)";
        assert_eq!(names(&scan(sql).unwrap().tables), ["a@1:26", "big@1:33", "Odd@3:21", "inner_one@4:27"]);
    }

    #[test]
    fn parameters_and_calls() {
        let scan = scan("SELECT f(a, 'm'), G(H(x)) FROM t\nWHERE y > $low AND z = $low").unwrap();
        assert_eq!(names(&scan.params), ["low@2:11", "low@2:24"]);
        let calls: Vec<&str> = scan.calls.iter().map(|c| c.function.name.as_str()).collect();
        assert_eq!(calls, ["f", "g", "h"]);
        assert_eq!(scan.calls[0].args[0], None);
        assert_eq!(names(&[scan.calls[0].args[1].clone().unwrap()]), ["m@1:13"]);
    }

    #[test]
    fn what_is_not_one_query_says_so() {
        let fault = scan("SELECT a\nFROM t WHERE\n").unwrap_err();
        assert!(fault.message.starts_with("SQL syntax: expected"), "{fault:?}");
        let fault = scan("SELECT a b c\nFROM t").unwrap_err();
        assert_eq!((fault.line, fault.column), (1, 12), "{fault:?}");
        for (sql, part) in [
            ("", "there is no statement"),
            ("-- only a comment\n", "there is no statement"),
            ("SELECT 1; SELECT 2", "2 statements"),
            ("DROP TABLE t", "not a query"),
            ("COPY t TO 'x'", "not a query"),
        ] {
            assert!(scan(sql).unwrap_err().message.contains(part), "{sql}");
        }
        assert!(scan("SELECT 1;").is_ok());
        let fault = scan("SELECT 'open").unwrap_err();
        assert_eq!((fault.line, fault.column), (1, 8), "{fault:?}");
    }
}
