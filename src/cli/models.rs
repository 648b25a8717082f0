//! `repro models`: what a model is, its size, and whether it can run here. Reads headers and settings, loads no weights.

use super::{
    Failure,
    grid::Grid,
    output::{Out, bytes, count},
};
use crate::{
    models::{causal::CausalConfig, encoder::config::EncoderConfig, weights},
    pipeline::assets,
    rewards::fasttext::FastText,
    storage::hub,
    text::tokenizer::Tokenizer,
};
use anyhow::{Context, Result};
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// Arguments of `repro models`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model directory, a directory of models, a fastText .bin file, hf://org/name or s3://… Default: the models in assets/.
    path: Option<String>,
}

/// One model, as far as it can be told.
#[derive(Debug)]
pub struct Card {
    pub name: String,
    pub kind: String,
    pub parameters: Option<u64>,
    pub size: u64,
    /// Shape, labels and the like.
    pub detail: String,
    /// Why it cannot run here; None if it can.
    pub obstacle: Option<String>,
}

/// Runs the command.
pub async fn main(args: Args) -> Result<(), Failure> {
    let root = match &args.path {
        Some(path) => hub::resolve(path).await?,
        None => assets::directory().context("no directory assets/ here; name a model: repro models PATH")?,
    };
    let cards: Vec<Card> = find(&root)?.iter().map(|path| card(path)).collect();
    if cards.is_empty() {
        let what = "no model in it: a model is a directory with config.json and *.safetensors, or a fastText .bin file";
        return Err(Failure::Failed(anyhow::anyhow!("{}: {what}", root.display())));
    }
    let mut grid = Grid::new(["model", "kind", "parameters", "size", "can run here", "details"]);
    for Card { name, kind, parameters, size, detail, obstacle } in cards {
        let can = obstacle.map_or_else(|| "yes".to_owned(), |why| format!("no: {why}"));
        grid.row([name, kind, parameters.map_or("-".into(), count), bytes(size), can, detail]);
    }
    Ok(write!(Out::new(), "{grid}")?)
}

/// Whether the path is a model.
pub fn is_model(path: &Path) -> bool {
    if path.is_dir() {
        return ["config.json", "tokenizer.json", "model.bin"].iter().any(|name| path.join(name).exists());
    }
    path.extension().is_some_and(|end| end == "bin" || end == "ftz")
}

/// The path itself, or the models in it.
fn find(root: &Path) -> Result<Vec<PathBuf>> {
    if is_model(root) || !root.is_dir() {
        return Ok(vec![root.to_owned()]);
    }
    let entries = std::fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|path| is_model(path)).collect();
    found.sort();
    Ok(found)
}

/// What can be told of a model.
pub fn card(path: &Path) -> Card {
    let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
    let known = match path {
        _ if path.join("config.json").exists() => match EncoderConfig::is_encoder(path) {
            Ok(true) => encoder(path),
            Ok(false) => decoder(path),
            Err(error) => Err(error),
        },
        _ if path.join("model.bin").exists() => classifier(&path.join("model.bin")),
        _ if path.join("tokenizer.json").exists() => tokenizer(path),
        _ if path.is_file() => classifier(path),
        _ => Err(anyhow::anyhow!("no config.json in it")),
    };
    match known {
        Ok(card) => Card { name, ..card },
        Err(error) => {
            let kind = "-".to_owned();
            let obstacle = Some(format!("{error:#}"));
            Card { name, kind, parameters: None, size: disk(path), detail: String::new(), obstacle }
        }
    }
}

fn decoder(path: &Path) -> Result<Card> {
    let config = CausalConfig::from_dir(path)?;
    let parameters = config.parameters() as u64;
    let weights = weights::bytes_on_disk(path);
    let tokenizer = Tokenizer::from_dir(path);
    let obstacle = match (&weights, &tokenizer) {
        (Err(error), _) => Some(format!("{error:#}")),
        (_, Err(error)) => Some(format!("{error:#}")),
        (_, Ok(tokenizer)) if tokenizer.vocab_size() > config.vocab_size() => {
            let (has, holds) = (tokenizer.vocab_size(), config.vocab_size());
            Some(format!("its tokenizer has {has} tokens, the model holds {holds}; they do not belong together"))
        }
        _ => memory_obstacle(parameters),
    };
    let (heads, kv_heads) = config.heads();
    Ok(Card {
        name: String::new(),
        kind: config.family().to_owned(),
        parameters: Some(parameters),
        size: disk(path),
        detail: format!(
            "{} layers of {}, {heads}/{kv_heads} heads, {} tokens, {} positions",
            config.layers(),
            config.hidden(),
            count(config.vocab_size() as u64),
            count(config.max_positions() as u64)
        ),
        obstacle,
    })
}

fn encoder(path: &Path) -> Result<Card> {
    let config = EncoderConfig::from_dir(path)?;
    let parameters = config.parameters(config.layers) as u64;
    let obstacle = match (weights::bytes_on_disk(path), Tokenizer::from_dir(path)) {
        (Err(error), _) | (_, Err(error)) => Some(format!("{error:#}")),
        (_, Ok(tokenizer)) if tokenizer.vocab_size() > config.vocab_size => {
            let (has, holds) = (tokenizer.vocab_size(), config.vocab_size);
            Some(format!("its tokenizer has {has} tokens, the model holds {holds}; they do not belong together"))
        }
        _ => memory_obstacle(parameters),
    };
    let EncoderConfig { hidden, layers, heads, vocab_size, .. } = &config;
    let positions = config.limit().map_or("relative".to_owned(), |limit| count(limit as u64));
    Ok(Card {
        name: String::new(),
        kind: format!("encoder ({})", format!("{:?}", config.arch).to_lowercase()),
        parameters: Some(parameters),
        size: disk(path),
        detail: format!(
            "{layers} layers of {hidden}, {heads} heads, {} tokens, {positions} positions",
            count(*vocab_size as u64)
        ),
        obstacle,
    })
}

/// Weights in bf16 have to fit into memory, with something left for the cache.
fn memory_obstacle(parameters: u64) -> Option<String> {
    let needed = parameters.saturating_mul(2);
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024;
    (needed > available / 10 * 9)
        .then(|| format!("its weights need {} in bf16, {} of memory are free", bytes(needed), bytes(available)))
}

fn classifier(path: &Path) -> Result<Card> {
    let labels = FastText::load(path)?.labels();
    Ok(Card {
        name: String::new(),
        kind: "fasttext".into(),
        parameters: None,
        size: disk(path),
        detail: format!("labels {}", labels.join(", ")),
        obstacle: None,
    })
}

fn tokenizer(path: &Path) -> Result<Card> {
    let tokenizer = Tokenizer::from_dir(path)?;
    Ok(Card {
        name: String::new(),
        kind: "tokenizer".into(),
        parameters: None,
        size: disk(path),
        detail: format!("{} tokens", count(tokenizer.vocab_size() as u64)),
        obstacle: None,
    })
}

/// Bytes of a file, or of the files of a directory.
fn disk(path: &Path) -> u64 {
    if path.is_file() {
        return path.metadata().map_or(0, |m| m.len());
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
}
