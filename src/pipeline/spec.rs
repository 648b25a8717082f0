//! The pipeline file as it was written: every part decoded and placed, nothing looked up yet. What refers to what is
//! checked in [`super::plan`].

use super::{
    stage::{
        StageConfig, evaluate, fasttext, figure, grpo,
        ingest::{self, SourceSpec},
        pack, pretrain, sft, sql, tokenizer, union,
    },
    yaml::{
        decode::decode,
        each,
        node::{Entry, Node, Value},
        problem::{Place, Problems, list, suggest},
        set::{Assignment, Names, interpolate},
    },
};
use crate::{
    rewards::repro_reward::RewardConfig,
    udf::{
        encoder::EncoderSpec,
        models::{CausalLmSpec, FastTextSpec, ModelSpec, TokenizerSpec},
        remote::RemoteSpec,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// A value and its place.
#[derive(Debug, Clone, PartialEq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stands in the file.
    pub at: Place,
}

/// A pipeline file.
#[derive(Debug)]
pub struct Spec {
    /// `name`, else the file's own name.
    pub name: String,
    /// Directory or `s3://bucket/prefix` below which everything is written.
    pub location: String,
    /// What all randomness starts from.
    pub seed: u64,
    /// Scalars, Null where a value has to come from `--set`.
    pub params: BTreeMap<String, Node>,
    /// Parameters that some `${name}` used.
    pub used: BTreeSet<String>,
    /// Parameters that `--set` brought in without a declaration.
    pub undeclared: BTreeMap<String, Place>,
    /// None where the entry is faulty (already reported).
    pub models: BTreeMap<String, Located<Option<ModelSpec>>>,
    /// How rephrasings are rewarded; the paper's way where nothing is said.
    pub rewards: RewardConfig,
    /// None where the entry is faulty (already reported).
    pub sources: BTreeMap<String, Located<Option<SourceSpec>>>,
    /// Tables made elsewhere: name → path.
    pub tables: BTreeMap<String, Located<String>>,
    /// In the order of the file.
    pub stages: Vec<StageSpec>,
}

/// What a stage yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yields {
    /// A table, at `<location>/<name>/`.
    Table,
    /// A model, at `<location>/models/<name>/`.
    Model,
}

/// One entry of `stages:`.
#[derive(Debug)]
pub struct StageSpec {
    /// The table or model that it yields.
    pub name: Located<String>,
    /// Which of the two.
    pub yields: Yields,
    /// The kind's key and the config below it; None where it is faulty (already reported).
    pub config: Option<StageConfig>,
    /// Names and values of its `for_each`.
    pub each: BTreeMap<String, Node>,
    /// The config as written, to find places.
    pub node: Node,
}

impl StageSpec {
    /// Tables that it makes besides what it yields.
    pub fn side_tables(&self) -> Vec<String> {
        self.config.as_ref().map(|config| config.side_tables(&self.name.value)).unwrap_or_default()
    }
}

const TOP: &[&str] = &["name", "location", "seed", "params", "models", "rewards", "sources", "tables", "stages"];
/// Names of params that would be taken for something else.
const RESERVED_PARAMS: &[&str] = TOP;
const TABLE_KINDS: &[&str] = &["ingest", "sql", "union", "pack", "figure", "evaluate"];
const MODEL_KINDS: &[&str] = &["pretrain", "sft", "grpo", "tokenizer", "fasttext"];
/// Directories beside the tables.
const RESERVED_TABLES: &[&str] = &["failed", "models"];

impl Spec {
    /// Reads the file and applies `--set` arguments and `${name}`. Faults go to `problems`; None where nothing can be made
    /// of the file.
    pub fn read(path: &Path, set: &[String], problems: &mut Problems) -> Option<Self> {
        let shown = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                problems.add(&Place::whole(&shown), format!("cannot read the pipeline: {error}"));
                return None;
            }
        };
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        Self::parse(&shown, &stem, &text, set, problems)
    }

    /// As [`Self::read`], from a text; `shown` names it in messages.
    pub fn parse(shown: &str, stem: &str, text: &str, set: &[String], problems: &mut Problems) -> Option<Self> {
        let mut tree = Node::parse(shown, text, problems)?;
        if !matches!(tree.value, Value::Map(_)) {
            let kind = tree.kind();
            problems.add(&tree.at, format!("a pipeline is a mapping with {}; this is {kind}", list(TOP)));
            return None;
        }
        let undeclared = assign(&mut tree, set, problems);
        let (params, mut used) = params(&mut tree, problems);
        refuse_text_in_queries(&mut tree, problems);
        each::expand(&mut tree, &params, &mut used, problems);
        interpolate(&mut tree, &params, &mut used, problems);
        check_keys(&tree, TOP, problems);
        Some(Self {
            name: text_at(&tree, "name", problems).unwrap_or_else(|| stem.to_owned()),
            location: required_text(&tree, "location", problems),
            seed: seed(&tree, problems),
            models: models(&tree, problems),
            rewards: rewards(&tree, problems),
            sources: sources(&tree, problems),
            tables: tables(&tree, problems),
            stages: stages(&tree, problems),
            used: used.into_iter().collect(),
            params,
            undeclared,
        })
    }
}

/// Applies every `--set`. A single step is a top-level scalar or a param. Gives the params that the file does not declare.
fn assign(tree: &mut Node, set: &[String], problems: &mut Problems) -> BTreeMap<String, Place> {
    let mut undeclared = BTreeMap::new();
    for argument in set {
        let Some(mut assignment) = Assignment::parse(argument, problems) else { continue };
        if let [name] = &assignment.path[..]
            && !TOP.contains(&name.as_str())
        {
            let declared = tree.get("params").and_then(|params| params.value.get(name)).map(|e| &e.value.value);
            match (declared, &assignment.value.value) {
                // 1 for a parameter that holds 0.5 is still a float in SQL.
                (Some(Value::Float(_)), Value::Int(n)) => assignment.value.value = Value::Float(*n as f64),
                (None, _) => drop(undeclared.insert(name.clone(), assignment.value.at.clone())),
                _ => {}
            }
            assignment.path.insert(0, "params".into());
        }
        assignment.apply(tree, problems);
    }
    undeclared
}

/// Takes `params` out of the tree: scalars only, `${other}` inside them filled in.
fn params(tree: &mut Node, problems: &mut Problems) -> (Names, Vec<String>) {
    let mut names = Names::new();
    let mut used = Vec::new();
    let Value::Map(top) = &mut tree.value else { return (names, used) };
    let Some(at) = top.iter().position(|e| e.key == "params") else { return (names, used) };
    let section = std::mem::replace(&mut top[at].value.value, Value::Null);
    let entries = match section {
        Value::Map(entries) => entries,
        Value::Null => Vec::new(),
        _ => {
            problems.add(&top[at].value.at, "`params` holds `name: value` pairs");
            Vec::new()
        }
    };
    for Entry { key, key_at, mut value } in entries {
        check_name(&key, &key_at, "parameter", problems);
        if RESERVED_PARAMS.contains(&key.as_str()) {
            problems.add(&key_at, format!("`{key}` is a key of the pipeline itself; give the parameter another name"));
        }
        if matches!(value.value, Value::List(_) | Value::Map(_)) {
            problems.add(&value.at, format!("the parameter `{key}` must be a number, a text or `true`/`false`"));
            value.value = Value::Hole;
        }
        names.insert(key, value);
    }
    fill_params(&mut names, &mut used, problems);
    (names, used)
}

/// Parameters may use each other, in any order; what is left over after as many rounds as there are names is a circle.
fn fill_params(names: &mut Names, used: &mut Vec<String>, problems: &mut Problems) {
    let open = |node: &Node| matches!(&node.value, Value::Text(t) if t.replace("$${", "").contains("${"));
    for _ in 0..=names.len() {
        let ready: Names = names.iter().filter(|(_, n)| !open(n)).map(|(k, n)| (k.clone(), n.clone())).collect();
        let waiting: Vec<String> = names.iter().filter(|(_, n)| open(n)).map(|(k, _)| k.clone()).collect();
        for name in waiting {
            let refers_to_open = |n: &Node| match &n.value {
                Value::Text(t) => names.keys().any(|k| !ready.contains_key(k) && t.contains(&format!("${{{k}}}"))),
                _ => false,
            };
            let mut node = names[&name].clone();
            if !refers_to_open(&node) {
                interpolate(&mut node, &ready, used, problems);
                names.insert(name, node);
            }
        }
    }
    for (name, node) in names.iter_mut().filter(|(_, n)| open(n)) {
        problems.add(&node.at, format!("the parameter `{name}` uses itself, directly or through another"));
        node.value = Value::Hole;
    }
}

/// In SQL a parameter is `$name`, bound as a value; text substitution there would let a value change the query.
fn refuse_text_in_queries(tree: &mut Node, problems: &mut Problems) {
    let Value::Map(top) = &mut tree.value else { return };
    let Some(Value::List(stages)) = top.iter_mut().find(|e| e.key == "stages").map(|e| &mut e.value.value) else {
        return;
    };
    for stage in stages {
        for key in ["sql", "figure"] {
            let Some(query) = stage.get_mut(key).and_then(|sql| sql.get_mut("query")) else { continue };
            if matches!(&query.value, Value::Text(t) if t.contains("${")) {
                problems.add(&query.at, "`${name}` in a query; write $name, which binds the value");
                query.value = Value::Hole;
            }
        }
    }
}

fn check_keys(node: &Node, known: &[&str], problems: &mut Problems) {
    let Value::Map(entries) = &node.value else { return };
    for entry in entries.iter().filter(|e| !known.contains(&e.key.as_str())) {
        problems.add(&entry.key_at, format!("unknown key `{}`{}", entry.key, suggest(&entry.key, known)));
    }
}

/// Lower-case names need no quotes in SQL and make plain directory names.
fn check_name(name: &str, at: &Place, what: &str, problems: &mut Problems) {
    let plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !plain {
        let rule = "use lower-case letters, digits and `_`, not beginning with a digit";
        problems.add(at, format!("`{name}` is not a plain {what} name; {rule}"));
    }
}

fn text_at(tree: &Node, key: &str, problems: &mut Problems) -> Option<String> {
    let node = &tree.get(key)?.value;
    match &node.value {
        Value::Text(text) if !text.is_empty() => Some(text.clone()),
        Value::Hole => None,
        _ => {
            problems.add(&node.at, format!("`{key}` must be a text, found {}", node.kind()));
            None
        }
    }
}

fn required_text(tree: &Node, key: &str, problems: &mut Problems) -> String {
    if tree.get(key).is_none() {
        problems.add(&tree.at, format!("the key `{key}` is missing; add it, e.g. `{key}: runs/mine`"));
    }
    text_at(tree, key, problems).unwrap_or_default()
}

fn seed(tree: &Node, problems: &mut Problems) -> u64 {
    let Some(entry) = tree.get("seed") else { return 42 };
    match entry.value.value {
        Value::Int(n) if n >= 0 => n.unsigned_abs(),
        Value::Hole => 0,
        _ => {
            problems.add(
                &entry.value.at,
                format!("`seed` must be a whole number, 0 or more, found {}", entry.value.kind()),
            );
            0
        }
    }
}

/// The entries of a section that maps names to things.
fn section<'a>(tree: &'a Node, key: &str, what: &str, problems: &mut Problems) -> &'a [Entry] {
    match tree.get(key).map(|e| &e.value) {
        Some(Node { value: Value::Map(entries), .. }) => {
            entries.iter().for_each(|e| check_name(&e.key, &e.key_at, what, problems));
            entries
        }
        None | Some(Node { value: Value::Null | Value::Hole, .. }) => &[],
        Some(node) => {
            problems.add(&node.at, format!("`{key}` holds `name: …` pairs, found {}", node.kind()));
            &[]
        }
    }
}

fn models(tree: &Node, problems: &mut Problems) -> BTreeMap<String, Located<Option<ModelSpec>>> {
    let made: Vec<String> = match tree.get("stages").map(|e| &e.value.value) {
        Some(Value::List(stages)) => stages.iter().filter_map(|s| text_of(&s.get("model")?.value)).collect(),
        _ => Vec::new(),
    };
    let entries = section(tree, "models", "model", problems).iter();
    entries
        .map(|entry| {
            let mut node = entry.value.clone();
            // A stage of this name gives the path; the entry holds settings only.
            let remote = node.get("kind").and_then(|kind| text_of(&kind.value)).is_some_and(|kind| kind == "remote");
            if made.contains(&entry.key) && node.get("path").is_none() && !remote {
                push(&mut node, "path", Value::Text(String::new()));
            }
            (entry.key.clone(), Located { value: model(&entry.key, &node, problems), at: entry.key_at.clone() })
        })
        .collect()
}

fn model(name: &str, node: &Node, problems: &mut Problems) -> Option<ModelSpec> {
    const KINDS: &[&str] = &["causal_lm", "encoder", "fasttext", "remote", "tokenizer"];
    let Value::Map(entries) = &node.value else {
        problems.add(&node.at, format!("the model `{name}` must be a mapping, e.g. {{ kind: causal_lm, path: … }}"));
        return None;
    };
    let Some(kind) = node.get("kind") else {
        problems.add(&node.at, format!("the key `kind` is missing; add it, one of {}", list(KINDS)));
        return None;
    };
    let rest: Vec<Entry> = entries.iter().filter(|e| e.key != "kind").cloned().collect();
    let rest = Node { at: node.at.clone(), value: Value::Map(rest) };
    match text_of(&kind.value).as_deref() {
        Some("causal_lm") => decode::<CausalLmSpec>(&rest, problems).map(ModelSpec::CausalLm),
        Some("encoder") => decode::<EncoderSpec>(&rest, problems).map(ModelSpec::Encoder),
        Some("fasttext") => decode::<FastTextSpec>(&rest, problems).map(ModelSpec::Fasttext),
        Some("remote") => decode::<RemoteSpec>(&rest, problems).map(ModelSpec::Remote),
        Some("tokenizer") => decode::<TokenizerSpec>(&rest, problems).map(ModelSpec::Tokenizer),
        Some(other) => {
            problems.add(&kind.value.at, format!("`{other}` is no kind of model{}", suggest(other, KINDS)));
            None
        }
        None => {
            problems.add(&kind.value.at, format!("`kind` must be one of {}, found {}", list(KINDS), kind.value.kind()));
            None
        }
    }
}

/// The section `rewards:`, with its numbers checked.
fn rewards(tree: &Node, problems: &mut Problems) -> RewardConfig {
    let Some(entry) = tree.get("rewards") else { return RewardConfig::default() };
    if entry.value.value == Value::Null {
        return RewardConfig::default();
    }
    let config: RewardConfig = decode(&entry.value, problems).unwrap_or_default();
    for fault in config.faults() {
        problems.add(&entry.key_at, format!("`rewards`: {fault}"));
    }
    config
}

fn sources(tree: &Node, problems: &mut Problems) -> BTreeMap<String, Located<Option<SourceSpec>>> {
    let mut found = BTreeMap::new();
    for entry in section(tree, "sources", "source", problems) {
        let value = match &entry.value.value {
            Value::Text(path) => Some(SourceSpec::from(path.as_str())),
            Value::Hole => None,
            _ => decode(&entry.value, problems),
        };
        found.insert(entry.key.clone(), Located { value, at: entry.key_at.clone() });
    }
    found
}

fn tables(tree: &Node, problems: &mut Problems) -> BTreeMap<String, Located<String>> {
    let mut found = BTreeMap::new();
    for entry in section(tree, "tables", "table", problems) {
        let path = text_of(&entry.value).unwrap_or_else(|| {
            if entry.value.value != Value::Hole {
                let kind = entry.value.kind();
                problems.add(&entry.value.at, format!("the table `{}` must be a path, found {kind}", entry.key));
            }
            String::new()
        });
        found.insert(entry.key.clone(), Located { value: path, at: entry.key_at.clone() });
    }
    found
}

fn stages(tree: &Node, problems: &mut Problems) -> Vec<StageSpec> {
    let items = match tree.get("stages").map(|e| &e.value) {
        Some(Node { value: Value::List(items), .. }) if !items.is_empty() => items,
        Some(node) => {
            problems.add(&node.at, format!("`stages` must be a list of at least one stage, found {}", node.kind()));
            return Vec::new();
        }
        None => {
            problems.add(&tree.at, "the key `stages` is missing; add the list of stages");
            return Vec::new();
        }
    };
    let mut stages: Vec<StageSpec> = Vec::new();
    for item in items {
        let Some(stage) = stage(item, problems) else { continue };
        if let Some(other) = stages.iter().find(|s| clash(s, &stage)) {
            let line = other.name.at.line;
            let message =
                format!("`{}` is already made by the stage in line {line}; choose another name", stage.name.value);
            problems.add(&stage.name.at, message);
        }
        stages.push(stage);
    }
    stages
}

/// Whether two stages write to one name. A table and a model of one name would be one word in SQL.
fn clash(a: &StageSpec, b: &StageSpec) -> bool {
    a.name.value == b.name.value || a.side_tables().contains(&b.name.value) || b.side_tables().contains(&a.name.value)
}

fn stage(item: &Node, problems: &mut Problems) -> Option<StageSpec> {
    if !matches!(item.value, Value::Map(_)) {
        problems.add(
            &item.at,
            format!("a stage is a mapping with `table` or `model` and what makes it; this is {}", item.kind()),
        );
        return None;
    }
    let known: Vec<&str> =
        ["table", "model", each::KEY].iter().chain(TABLE_KINDS).chain(MODEL_KINDS).copied().collect();
    check_keys(item, &known, problems);
    let (yields, name) = match (item.get("table"), item.get("model")) {
        (Some(entry), None) => (Yields::Table, entry),
        (None, Some(entry)) => (Yields::Model, entry),
        (Some(_), Some(entry)) => {
            problems.add(&entry.key_at, "a stage yields one thing: give `table` or `model`, not both");
            return None;
        }
        (None, None) => {
            problems.add(&item.at, "the stage has no name; add `table: NAME` or `model: NAME`");
            return None;
        }
    };
    let Some(text) = text_of(&name.value) else {
        problems.add(&name.value.at, format!("`{}` must be a name, found {}", name.key, name.value.kind()));
        return None;
    };
    check_name(&text, &name.value.at, &name.key, problems);
    if RESERVED_TABLES.contains(&text.as_str()) {
        problems
            .add(&name.value.at, format!("`{text}` is the name of a directory beside the tables; choose another name"));
    }
    let name = Located { value: text, at: name.value.at.clone() };
    let config = kind(item, &name, yields, problems);
    let node = config.map_or_else(|| item.clone(), |entry| entry.value.clone());
    let config = config.and_then(|entry| config_of(entry, problems));
    let each = match item.get(each::KEY).map(|entry| &entry.value.value) {
        Some(Value::Map(entries)) => entries.iter().map(|e| (e.key.clone(), e.value.clone())).collect(),
        _ => BTreeMap::new(),
    };
    Some(StageSpec { name, yields, config, each, node })
}

/// The one key that says how the stage works, if it fits what the stage yields.
fn kind<'a>(item: &'a Node, name: &Located<String>, yields: Yields, problems: &mut Problems) -> Option<&'a Entry> {
    let (right, wrong, word) = match yields {
        Yields::Table => (TABLE_KINDS, MODEL_KINDS, "model"),
        Yields::Model => (MODEL_KINDS, TABLE_KINDS, "table"),
    };
    let name_text = &name.value;
    let given: Vec<&Entry> = right.iter().chain(wrong).filter_map(|key| item.get(key)).collect();
    match given[..] {
        [entry] if right.contains(&entry.key.as_str()) => Some(entry),
        [entry] => {
            let message = format!("`{}` yields a {word}; write `{word}: {name_text}`", entry.key);
            problems.add(&entry.key_at, message);
            None
        }
        [] => {
            problems.add(&name.at, format!("nothing says how to make `{name_text}`; add one of {}", list(right)));
            None
        }
        _ => {
            let keys: Vec<&str> = given.iter().map(|e| e.key.as_str()).collect();
            problems.add(&name.at, format!("`{name_text}` has {}; a stage does one thing, split it", list(&keys)));
            None
        }
    }
}

/// Decodes the config below a kind's key, with its short forms.
fn config_of(entry: &Entry, problems: &mut Problems) -> Option<StageConfig> {
    let mut node = entry.value.clone();
    let short = matches!(node.value, Value::Text(_));
    let place = |key: &str, node: &mut Node| {
        let value = std::mem::replace(&mut node.value, Value::Map(Vec::new()));
        push(node, key, value);
    };
    match entry.key.as_str() {
        "ingest" => {
            if short {
                place("source", &mut node);
            }
            if matches!(node.value, Value::Map(_)) && node.get("source").is_none() {
                problems.add(&node.at, "the key `source` is missing; name an entry of `sources:`");
            }
            decode::<ingest::Config>(&node, problems).map(StageConfig::Ingest)
        }
        "sql" => {
            if short {
                place("file", &mut node);
            }
            sql_config(&node, problems).map(StageConfig::Sql)
        }
        "union" => {
            if short {
                place("tables", &mut node);
            }
            decode::<union::Config>(&node, problems).map(StageConfig::Union)
        }
        "figure" => figure_config(&node, problems).map(|config| StageConfig::Figure(Box::new(config))),
        "pack" => decode::<pack::Config>(&node, problems).map(|config| StageConfig::Pack(Box::new(config))),
        "pretrain" => decode::<pretrain::Config>(&node, problems).map(|config| StageConfig::Pretrain(Box::new(config))),
        "sft" => decode::<sft::Config>(&node, problems).map(|config| StageConfig::Sft(Box::new(config))),
        "grpo" => decode::<grpo::Config>(&node, problems).map(|config| StageConfig::Grpo(Box::new(config))),
        "tokenizer" => decode::<tokenizer::Config>(&node, problems).map(StageConfig::Tokenizer),
        "evaluate" => decode::<evaluate::Config>(&node, problems).map(StageConfig::Evaluate),
        _ => decode::<fasttext::Config>(&node, problems).map(StageConfig::Fasttext),
    }
}

fn sql_config(node: &Node, problems: &mut Problems) -> Option<sql::Config> {
    if node.holed() {
        return None;
    }
    let config: sql::Config = decode(node, problems)?;
    if !one_query(&config, node, problems) {
        return None;
    }
    if config.fragment_rows == Some(0) {
        let at = node.get("fragment_rows").map_or(&node.at, |e| &e.value.at);
        problems.add(at, "`fragment_rows` must be at least 1");
        return None;
    }
    Some(config)
}

fn figure_config(node: &Node, problems: &mut Problems) -> Option<figure::Config> {
    let config: figure::Config = decode(node, problems)?;
    one_query(&config.sql(), node, problems).then_some(config)
}

fn one_query(config: &sql::Config, node: &Node, problems: &mut Problems) -> bool {
    match (&config.file, &config.query) {
        (Some(_), Some(_)) => problems.add(&node.at, "give `file` or `query`, not both"),
        (None, None) => problems.add(&node.at, "no SQL; give `file: NAME.sql` or `query: SELECT …`"),
        _ => return true,
    }
    false
}

fn push(node: &mut Node, key: &str, value: Value) {
    let at = node.at.clone();
    if let Value::Map(entries) = &mut node.value {
        entries.push(Entry { key: key.into(), key_at: at.clone(), value: Node { at, value } });
    }
}

fn text_of(node: &Node) -> Option<String> {
    match &node.value {
        Value::Text(text) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}
