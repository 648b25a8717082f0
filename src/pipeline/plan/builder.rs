//! From a specification to a plan: looks up every table, model, parameter and file that it names, and collects what is wrong.

use super::{
    Stage, Work,
    paths::{external_table, resolve, there},
    scalar,
};
use crate::pipeline::{
    graph,
    spec::{Located, Spec, StageSpec, Yields},
    sqlscan::{self, Scan},
    stage::{
        StageConfig, fasttext,
        ingest::{Paths, SourceSpec},
        sql::{self, InputTable, Query},
        union,
    },
    yaml::{
        node::Value,
        problem::{Place, Problems, suggest},
        set::unset,
    },
};
use crate::{
    rewards::repro_reward::RewardConfig,
    storage::{commit::TableCommit, location::Location},
    udf::{
        ModelArgument, model_arguments,
        models::{CausalLmSpec, FastTextSpec, ModelSpec},
        repro_reward,
    },
};
use datafusion::common::ScalarValue;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// A SQL stage's text and what it names.
pub(super) struct Scanned {
    query: String,
    origin: String,
    scan: Scan,
    /// Turns a position in the text into a place.
    place: Box<dyn Fn(usize, usize) -> Place>,
}

pub(super) struct Builder<'a> {
    pub(super) spec: &'a Spec,
    pub(super) file: &'a Path,
    pub(super) location: &'a Location,
    pub(super) problems: &'a mut Problems,
    pub(super) params_used: BTreeSet<String>,
}

impl Builder<'_> {
    pub(super) fn params(&self) -> BTreeMap<String, ScalarValue> {
        let values = self.spec.params.iter().filter_map(|(name, node)| Some((name.clone(), scalar(&node.value)?)));
        let seed = i64::try_from(self.spec.seed).unwrap_or(i64::MAX);
        values.chain([("seed".to_owned(), ScalarValue::Int64(Some(seed)))]).collect()
    }

    fn maker(&self, name: &str, yields: Yields) -> Option<usize> {
        let side = |s: &StageSpec| yields == Yields::Table && s.side_tables().iter().any(|table| table == name);
        self.spec.stages.iter().position(|s| s.name.value == name && s.yields == yields || side(s))
    }

    /// Where the model of a stage will be; a fastText classifier is a file in its directory.
    fn made_path(&self, name: &str) -> String {
        let directory = self.location.join(&format!("models/{name}")).to_string();
        let stage = self.maker(name, Yields::Model).and_then(|i| self.spec.stages[i].config.as_ref());
        match stage {
            Some(StageConfig::Fasttext(_)) => format!("{directory}/{}", fasttext::FILE),
            _ => directory,
        }
    }

    /// The entries of `models:` with paths resolved, and the models that stages make.
    pub(super) fn models(&mut self) -> BTreeMap<String, ModelSpec> {
        let mut models = BTreeMap::new();
        for (name, Located { value, at }) in &self.spec.models {
            let Some(mut spec) = value.clone() else { continue };
            let made = self.maker(name, Yields::Model).map(|i| self.spec.stages[i].name.at.line);
            let file = |path: PathBuf| PathBuf::from(resolve(self.file, &path.to_string_lossy()));
            let path = match &mut spec {
                ModelSpec::CausalLm(lm) => {
                    lm.prompt = lm.prompt.take().map(file);
                    &mut lm.path
                }
                ModelSpec::Fasttext(classifier) => &mut classifier.path,
                ModelSpec::Remote(remote) => {
                    remote.prompt = remote.prompt.take().map(file);
                    remote.tokenizer = remote.tokenizer.take().map(|path| resolve(self.file, &path));
                    if let Some(line) = made {
                        let message = format!("`{name}` is also made by the stage in line {line}; rename one");
                        self.problems.add(at, message);
                    }
                    models.insert(name.clone(), spec);
                    continue;
                }
                ModelSpec::Encoder(encoder) => {
                    encoder.idf = encoder.idf.take().map(file);
                    &mut encoder.path
                }
                ModelSpec::Tokenizer(tokenizer) => &mut tokenizer.path,
            };
            match made {
                Some(_) if path.is_empty() => *path = self.made_path(name),
                Some(line) => {
                    let message =
                        format!("`{name}` is also made by the stage in line {line}; remove `path` here or rename one");
                    self.problems.add(at, message);
                }
                None if path.is_empty() => self.problems.add(at, format!("the model `{name}` has an empty `path`")),
                None => *path = resolve(self.file, path),
            }
            models.insert(name.clone(), spec);
        }
        for stage in self.spec.stages.iter().filter(|s| s.yields == Yields::Model) {
            let name = &stage.name.value;
            let path = self.made_path(name);
            let spec = match &stage.config {
                Some(StageConfig::Fasttext(_)) => ModelSpec::Fasttext(FastTextSpec { path }),
                _ => ModelSpec::CausalLm(CausalLmSpec { path, ..CausalLmSpec::default() }),
            };
            models.entry(name.clone()).or_insert(spec);
        }
        models
    }

    /// The texts of SQL stages, by stage; None for other stages and faulty ones.
    pub(super) fn scans(&mut self) -> Vec<Option<Scanned>> {
        let stages = &self.spec.stages;
        stages
            .iter()
            .map(|stage| match &stage.config {
                Some(StageConfig::Sql(config)) => self.scan(stage, config),
                Some(StageConfig::Figure(config)) => self.scan(stage, &config.sql()),
                Some(StageConfig::Union(config)) => self.union(stage, config),
                _ => None,
            })
            .collect()
    }

    fn scan(&mut self, stage: &StageSpec, config: &sql::Config) -> Option<Scanned> {
        let (query, origin, place): (_, _, Box<dyn Fn(usize, usize) -> Place>) = match (&config.file, &config.query) {
            (Some(file), _) => {
                let written = file.to_string_lossy();
                let path = resolve(self.file, &written);
                let text = std::fs::read_to_string(&path);
                let Ok(text) = text.map_err(|error| {
                    let at = stage.node.find_text(&written).unwrap_or(&stage.node.at);
                    let tried = "looked in the current directory, beside the YAML file and in the directory above it";
                    self.problems.add(at, format!("cannot read `{written}`: {}; {tried}", io_reason(&error)));
                }) else {
                    return None;
                };
                let shown: std::sync::Arc<str> = path.as_str().into();
                let place = Box::new(move |line, column| Place { file: shown.clone(), line, column });
                (text, path, place)
            }
            (None, Some(query)) => {
                let at = stage.node.find_text(query).unwrap_or(&stage.node.at).clone();
                let origin = format!("{at} (query of `{}`)", stage.name.value);
                (query.clone(), origin, Box::new(move |_, _| at.clone()))
            }
            (None, None) => return None,
        };
        match sqlscan::scan(&query) {
            Ok(scan) => Some(Scanned { query, origin, scan, place }),
            Err(fault) => {
                self.problems.add(&place(fault.line, fault.column), fault.message);
                None
            }
        }
    }

    /// The query over the tables that the patterns of a `union` match.
    fn union(&mut self, stage: &StageSpec, config: &union::Config) -> Option<Scanned> {
        let others = self.spec.stages.iter().filter(|s| s.yields == Yields::Table && s.name.value != stage.name.value);
        let known: Vec<&str> = others.map(|s| s.name.value.as_str()).collect();
        let names = match config.matching(&known) {
            Ok(names) => names,
            Err(pattern) => {
                let at = stage.node.find_text(pattern).unwrap_or(&stage.node.at);
                self.problems.add(at, format!("no stage makes a table `{pattern}`{}", suggest(pattern, &known)));
                return None;
            }
        };
        let query = config.query(&names);
        let at = stage.node.at.clone();
        let origin = format!("{at} (union `{}`)", stage.name.value);
        let scan = sqlscan::scan(&query).ok()?;
        Some(Scanned { query, origin, scan, place: Box::new(move |_, _| at.clone()) })
    }

    /// Tables that are read and that no stage makes: entries of `tables:`, else finished tables of earlier runs.
    pub(super) async fn external(&mut self, scans: &[Option<Scanned>]) -> BTreeMap<String, InputTable> {
        let mut external = BTreeMap::new();
        for (name, Located { value, at }) in &self.spec.tables {
            if let Some(stage) = self.maker(name, Yields::Table) {
                let line = self.spec.stages[stage].name.at.line;
                self.problems.add(at, format!("`{name}` is also made by the stage in line {line}; rename one"));
            } else if !value.is_empty() {
                external.insert(name.clone(), external_table(&resolve(self.file, value)).await);
            }
        }
        let in_queries = scans.iter().flatten().flat_map(|s| s.scan.tables.iter().map(|t| t.name.clone()));
        let in_configs =
            self.spec.stages.iter().filter_map(|s| s.config.as_ref()).flat_map(|c| c.tables()).map(str::to_owned);
        let names: BTreeSet<String> = in_queries.chain(in_configs).collect();
        for name in names {
            let known = external.contains_key(&name) || self.spec.tables.contains_key(&name);
            if known || self.maker(&name, Yields::Table).is_some() {
                continue;
            }
            if let Ok(Some(_)) = TableCommit::manifest(self.location, &name).await {
                external.insert(name.clone(), InputTable::Managed { location: self.location.clone(), table: name });
            }
        }
        external
    }

    /// Each stage, None where it is faulty. Needs are indices into this list.
    pub(super) fn stages(
        &mut self,
        scans: &[Option<Scanned>],
        params: &BTreeMap<String, ScalarValue>,
        models: &BTreeMap<String, ModelSpec>,
        external: &BTreeMap<String, InputTable>,
    ) -> Vec<Option<Stage>> {
        let spec = self.spec;
        let mut stages = Vec::new();
        for (stage, scanned) in spec.stages.iter().zip(scans) {
            let (tables, used) = self.references(stage, scanned.as_ref());
            for (name, at) in &tables {
                self.check_table(name, at, external);
            }
            for (name, at) in &used {
                self.check_model(name, at, models);
            }
            let bound = scanned.as_ref().map(|s| self.bind(s, stage, params)).unwrap_or_default();
            let needs = self.needs(&tables, &used);
            let names = |refs: &[(String, Place)]| -> Vec<String> {
                refs.iter().map(|(n, _)| n.clone()).collect::<BTreeSet<_>>().into_iter().collect()
            };
            let work = self.work(stage, scanned.as_ref(), external);
            let uses_section =
                |stage: &StageSpec| matches!(&stage.config, Some(StageConfig::Grpo(c)) if c.rewards.is_none());
            let rewarded = |s: &Scanned| s.scan.calls.iter().any(|call| call.function.name == repro_reward::NAME);
            stages.push(self.resolved(stage).zip(work).map(|(config, work)| Stage {
                name: stage.name.value.clone(),
                yields: stage.yields,
                work,
                config,
                tables: names(&tables),
                models: names(&used),
                params: bound,
                rewards: (scanned.as_ref().is_some_and(rewarded) || uses_section(stage)).then(|| spec.rewards.clone()),
                needs,
            }));
        }
        stages
    }

    /// Tables and models that a stage names, with their places.
    #[expect(clippy::type_complexity, reason = "two lists of names with places")]
    fn references(&self, stage: &StageSpec, scanned: Option<&Scanned>) -> (Vec<(String, Place)>, Vec<(String, Place)>) {
        let at = |name: &str| stage.node.find_text(name).unwrap_or(&stage.node.at).clone();
        let config = stage.config.as_ref();
        let mut tables: Vec<_> =
            config.iter().flat_map(|c| c.tables()).map(|name| (name.to_owned(), at(name))).collect();
        let named = config.iter().flat_map(|c| c.models()).filter(|name| !self.is_model_path(name));
        let mut models: Vec<_> = named.map(|name| (name.to_owned(), at(name))).collect();
        if let Some(StageConfig::Grpo(grpo)) = config {
            let rewards = grpo.rewards.as_ref().unwrap_or(&self.spec.rewards);
            models.extend(self.models_of(rewards).map(|name| (name, stage.node.at.clone())));
        }
        let arguments = model_arguments();
        if let Some(Scanned { scan, place, .. }) = scanned {
            tables.extend(scan.tables.iter().map(|t| (t.name.clone(), place(t.line, t.column))));
            for call in &scan.calls {
                if call.function.name == repro_reward::NAME {
                    let at = place(call.function.line, call.function.column);
                    models.extend(self.reward_models().map(|name| (name, at.clone())));
                    continue;
                }
                let Some(argument) = arguments.iter().find(|a| a.function == call.function.name) else { continue };
                let (name, at) = match call.args.get(argument.position) {
                    None if argument.optional && !self.has_model(argument.role) => continue,
                    None => (argument.role.to_owned(), &call.function),
                    Some(Some(literal)) => (literal.name.clone(), literal),
                    // A model named by an expression is refused when the query is planned.
                    Some(None) => continue,
                };
                models.push((name, place(at.line, at.column)));
            }
        }
        (tables, models)
    }

    /// The models of the section `rewards:`; one that its part can do without only if it is there.
    fn reward_models(&self) -> impl Iterator<Item = String> {
        let used = self.spec.rewards.models().into_iter();
        used.filter(|model| !model.optional || self.has_model(&model.name)).map(|model| model.name)
    }

    /// Whether an entry or a stage gives the model.
    fn has_model(&self, name: &str) -> bool {
        self.spec.models.contains_key(name) || self.maker(name, Yields::Model).is_some()
    }

    /// The models of a reward; one that its part can do without only if it is there.
    fn models_of(&self, rewards: &RewardConfig) -> impl Iterator<Item = String> {
        let there = |name: &str| self.spec.models.contains_key(name) || self.maker(name, Yields::Model).is_some();
        rewards.models().into_iter().filter(move |model| !model.optional || there(&model.name)).map(|model| model.name)
    }

    /// A trainer's model that no entry and no stage gives, and that looks like a path.
    fn is_model_path(&self, name: &str) -> bool {
        !self.has_model(name) && (name.contains('/') || there(&resolve(self.file, name)))
    }

    fn check_table(&mut self, name: &str, at: &Place, external: &BTreeMap<String, InputTable>) {
        let known = external.contains_key(name) || self.spec.tables.contains_key(name);
        if known || self.maker(name, Yields::Table).is_some() {
            return;
        }
        let made = self.spec.stages.iter().filter(|s| s.yields == Yields::Table).map(|s| &s.name.value);
        let side: Vec<String> = self.spec.stages.iter().flat_map(StageSpec::side_tables).collect();
        let all: Vec<&String> = made.chain(&side).chain(self.spec.tables.keys()).collect();
        let elsewhere = format!("no table of that name is at {} either", self.location);
        self.problems.add(at, format!("no stage makes the table `{name}`{}; {elsewhere}", suggest(name, &all)));
    }

    fn check_model(&mut self, name: &str, at: &Place, models: &BTreeMap<String, ModelSpec>) {
        if !models.contains_key(name) && !self.spec.models.contains_key(name) {
            let known: BTreeSet<&String> = models.keys().chain(self.spec.models.keys()).collect();
            let known: Vec<&String> = known.into_iter().collect();
            let message = format!(
                "no model `{name}`{}; add it under `models:` or a stage `model: {name}`",
                suggest(name, &known)
            );
            self.problems.add(at, message);
        }
    }

    /// The values that a query binds; names without a value are problems.
    fn bind(
        &mut self,
        scanned: &Scanned,
        stage: &StageSpec,
        params: &BTreeMap<String, ScalarValue>,
    ) -> BTreeMap<String, ScalarValue> {
        let mut bound = BTreeMap::new();
        for used in &scanned.scan.params {
            if let Some(value) = stage.each.get(&used.name).and_then(|node| scalar(&node.value)) {
                bound.insert(used.name.clone(), value);
                continue;
            }
            self.params_used.insert(used.name.clone());
            let place = (scanned.place)(used.line, used.column);
            match (params.get(&used.name), self.spec.params.get(&used.name).map(|n| &n.value)) {
                (Some(value), _) => drop(bound.insert(used.name.clone(), value.clone())),
                (None, Some(Value::Null)) => self.problems.add(&place, unset(&used.name)),
                (None, Some(_)) => {}
                (None, None) => {
                    let known: Vec<&String> = params.keys().collect();
                    let message = format!(
                        "no parameter `{0}`{1}; give it with --set {0}=VALUE or under `params`",
                        used.name,
                        suggest(&used.name, &known)
                    );
                    self.problems.add(&place, message);
                }
            }
        }
        bound
    }

    /// The settings with their paths resolved.
    fn resolved(&self, stage: &StageSpec) -> Option<StageConfig> {
        let mut config = stage.config.clone()?;
        config.resolve(|name| !self.is_model_path(name), |path| resolve(self.file, path));
        Some(config)
    }

    fn needs(&self, tables: &[(String, Place)], models: &[(String, Place)]) -> Vec<usize> {
        let tables = tables.iter().filter_map(|(name, _)| self.maker(name, Yields::Table));
        let models = models.iter().filter_map(|(name, _)| self.maker(name, Yields::Model));
        tables.chain(models).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn work(
        &mut self,
        stage: &StageSpec,
        scanned: Option<&Scanned>,
        external: &BTreeMap<String, InputTable>,
    ) -> Option<Work> {
        Some(match self.resolved(stage)? {
            StageConfig::Ingest(config) => {
                let Some(source) = self.spec.sources.get(&config.source) else {
                    let known: Vec<&String> = self.spec.sources.keys().collect();
                    let at = stage.node.find_text(&config.source).unwrap_or(&stage.node.at);
                    let message = format!(
                        "no source `{0}`{1}; add it under `sources:`",
                        config.source,
                        suggest(&config.source, &known)
                    );
                    self.problems.add(at, message);
                    return None;
                };
                Work::Ingest { config, source: self.source(source.value.as_ref()?) }
            }
            StageConfig::Sql(config) => Work::Sql(self.query(scanned?, &config, external)),
            StageConfig::Union(_) => Work::Sql(self.query(scanned?, &sql::Config::default(), external)),
            StageConfig::Figure(config) => {
                let query = self.query(scanned?, &config.sql(), external);
                Work::Figure { config, query }
            }
            StageConfig::Pack(config) => {
                let tables = config.tables().iter().map(|n| ((*n).to_owned(), self.input(n, external))).collect();
                Work::Pack { config, tables }
            }
            StageConfig::Pretrain(config) => Work::Pretrain(config),
            StageConfig::Sft(config) => Work::Sft(config),
            StageConfig::Grpo(config) => Work::Grpo(config),
            StageConfig::Tokenizer(config) => Work::Tokenizer(config),
            StageConfig::Fasttext(config) => Work::Fasttext(config),
            StageConfig::Evaluate(config) => Work::Evaluate(config),
        })
    }

    /// The source with its paths resolved.
    fn source(&self, source: &SourceSpec) -> SourceSpec {
        let path = match &source.path {
            Paths::One(path) => Paths::One(resolve(self.file, path)),
            Paths::Many(paths) => Paths::Many(paths.iter().map(|path| resolve(self.file, path)).collect()),
        };
        SourceSpec { path, ..source.clone() }
    }

    /// A table of this pipeline or one made elsewhere.
    fn input(&self, name: &str, external: &BTreeMap<String, InputTable>) -> InputTable {
        let ours = || InputTable::Managed { location: self.location.clone(), table: name.to_owned() };
        external.get(name).cloned().unwrap_or_else(ours)
    }

    fn query(&self, scanned: &Scanned, config: &sql::Config, external: &BTreeMap<String, InputTable>) -> Query {
        let scan = &scanned.scan;
        let slow: Vec<ModelArgument> = model_arguments().into_iter().filter(|a| a.slow).collect();
        let runs_model = |call: &sqlscan::Call| {
            let function = slow.iter().find(|argument| argument.function == call.function.name);
            function.is_some_and(|a| !a.optional || call.args.len() > a.position || self.has_model(a.role))
        };
        Query {
            text: scanned.query.clone(),
            origin: scanned.origin.clone(),
            tables: scan.tables.iter().map(|t| (t.name.clone(), self.input(&t.name, external))).collect(),
            calls_model: scan.calls.iter().any(runs_model),
            fragment_rows: config.fragment_rows,
        }
    }

    /// A `--set name=value` whose name is neither declared nor used anywhere is a slip.
    pub(super) fn undeclared(&mut self) {
        for (name, at) in &self.spec.undeclared {
            if !self.params_used.contains(name) {
                let known: Vec<&String> = self.spec.params.keys().filter(|k| *k != name).collect();
                let message = format!("nothing in the pipeline uses the parameter `{name}`{}", suggest(name, &known));
                self.problems.add(at, message);
            }
        }
    }

    pub(super) fn order(&mut self, stages: &[Option<Stage>]) -> Vec<usize> {
        let needs: Vec<Vec<usize>> =
            stages.iter().map(|s| s.as_ref().map_or_else(Vec::new, |s| s.needs.clone())).collect();
        graph::order(&needs).unwrap_or_else(|cycles| {
            for cycle in cycles {
                let names: Vec<&str> = cycle.iter().map(|&i| self.spec.stages[i].name.value.as_str()).collect();
                let steps: Vec<String> = (0..names.len())
                    .map(|i| format!("`{}` needs `{}`", names[i], names[(i + 1) % names.len()]))
                    .collect();
                let at = &self.spec.stages[cycle[0]].name.at;
                self.problems
                    .add(at, format!("the stages go in a circle: {}; break it at one of them", steps.join(", ")));
            }
            Vec::new()
        })
    }
}

fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".into(),
        std::io::ErrorKind::InvalidData => "it is not UTF-8 text".into(),
        _ => error.to_string(),
    }
}
