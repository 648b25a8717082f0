//! The `union` stage: the rows of several tables of the pipeline, one table after the other, with a column that says which. Columns are matched by
//! name; one that a table lacks is NULL there. It is a query that the pipeline writes itself; what runs it is the `sql` stage.

use super::pack::Tables;
use serde::{Deserialize, Serialize};

/// Settings of a `union` stage. `union: evals_*` alone is short for `union: { tables: evals_* }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Names of tables that stages of this pipeline make, or a pattern of names (`*` for anything), or a list of both.
    pub tables: Tables,
    /// The column that holds the table's name.
    #[serde(default = "source")]
    pub column: String,
}

fn source() -> String {
    "source".to_owned()
}

impl Config {
    /// The names among `known` that each pattern matches, in the order of the patterns and of `known`, none twice; or the first pattern that
    /// matches none.
    ///
    /// # Errors
    /// That pattern.
    pub fn matching<'a>(&'a self, known: &[&'a str]) -> Result<Vec<&'a str>, &'a str> {
        let mut found: Vec<&str> = Vec::new();
        for pattern in self.tables.list() {
            let compiled = glob::Pattern::new(pattern).map_err(|_| pattern.as_str())?;
            let hits: Vec<&str> = known.iter().copied().filter(|name| compiled.matches(name)).collect();
            if hits.is_empty() {
                return Err(pattern);
            }
            found.extend(hits);
        }
        let mut seen = std::collections::HashSet::new();
        found.retain(|name| seen.insert(*name));
        Ok(found)
    }

    /// The query. Names of tables and columns of a pipeline are plain.
    pub fn query(&self, names: &[&str]) -> String {
        let column = self.column.replace('"', "\"\"");
        let select = |name: &&str| format!("SELECT '{name}' AS \"{column}\", * FROM {name}");
        names.iter().map(select).collect::<Vec<_>>().join("\nUNION ALL BY NAME\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_find_tables_once() {
        let config = |tables: &[&str]| Config {
            tables: Tables::Many(tables.iter().map(|t| (*t).to_owned()).collect()),
            column: source(),
        };
        let known = ["evals_b", "evals_a", "mix"];
        assert_eq!(config(&["evals_*", "mix", "evals_a"]).matching(&known), Ok(vec!["evals_b", "evals_a", "mix"]));
        assert_eq!(config(&["mix", "eval_*"]).matching(&known), Err("eval_*"));
        assert_eq!(
            config(&[]).query(&["a", "b"]),
            "SELECT 'a' AS \"source\", * FROM a\nUNION ALL BY NAME\nSELECT 'b' AS \"source\", * FROM b"
        );
    }
}
