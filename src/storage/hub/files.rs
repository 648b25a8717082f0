//! Which files of a model repository are needed. Pure: names in, names out.

use anyhow::{Context, bail};
use std::{collections::BTreeSet, path::Path};

/// What a model is wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// All of it: config, weights, tokenizer, templates.
    Model,
    /// The tokenizer and its templates.
    Tokenizer,
}

/// The index of sharded weights.
pub(super) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const TOKENIZER: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "config.json"];
const MODEL: [&str; 3] = ["generation_config.json", "prompt.txt", "repro.json"];

/// Small files to fetch first.
pub(super) fn small(names: &[String], need: Need) -> Vec<&str> {
    let wanted = |name: &&str| TOKENIZER.contains(name) || (need == Need::Model && MODEL.contains(name));
    names.iter().map(String::as_str).filter(wanted).collect()
}

/// How the weights lie in the repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Weights {
    /// these files
    Files(Vec<String>),
    /// those that [`INDEX`] lists
    Indexed,
}

/// The weights to fetch. Errors: none, or none but pickles.
pub(super) fn weights(names: &[String]) -> anyhow::Result<Weights> {
    if names.iter().any(|name| name == SINGLE) {
        return Ok(Weights::Files(vec![SINGLE.to_owned()]));
    }
    if names.iter().any(|name| name == INDEX) {
        return Ok(Weights::Indexed);
    }
    let others: Vec<String> =
        names.iter().filter(|name| name.ends_with(".safetensors") && !name.contains('/')).cloned().collect();
    if !others.is_empty() {
        return Ok(Weights::Files(others));
    }
    let pickle = names.iter().find(|name| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end)));
    match pickle {
        Some(pickle) => bail!(
            "holds weights only as {pickle}: pickle files can run code and are never opened; convert the model to safetensors \
             (for a fastText model name the file: …/{pickle})"
        ),
        None => bail!("holds no *.safetensors weights"),
    }
}

/// The shards that an index lists, each once.
pub(super) fn shards(index: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(index).with_context(|| format!("{}: cannot read", index.display()))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).with_context(|| format!("{}: not JSON", index.display()))?;
    let map = json.get("weight_map").and_then(serde_json::Value::as_object);
    let map = map.with_context(|| format!("{}: has no weight_map", index.display()))?;
    let names: BTreeSet<&str> = map.values().filter_map(serde_json::Value::as_str).collect();
    if names.is_empty() {
        bail!("{}: lists no weights", index.display());
    }
    if let Some(name) = names.iter().find(|name| !name.ends_with(".safetensors") || name.contains(['/', '\\'])) {
        bail!("{}: lists {name:?}, which is no safetensors file beside it", index.display());
    }
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Whether a directory holds all that is needed, weights last. Weights are fetched after everything else, so a directory with all its
/// weights has the small files too.
pub(super) fn is_whole(dir: &Path, need: Need) -> bool {
    let has = |name: &str| dir.join(name).is_file();
    let tokenizer = has("tokenizer.json");
    match need {
        Need::Tokenizer => tokenizer,
        Need::Model => {
            let indexed = || shards(&dir.join(INDEX)).is_ok_and(|shards| shards.iter().all(|shard| has(shard)));
            tokenizer && has("config.json") && (has(SINGLE) || indexed())
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_what_is_needed_is_taken() {
        let all = names(&[
            ".gitattributes",
            "README.md",
            "config.json",
            "tokenizer.json",
            "merges.txt",
            "repro.json",
            "onnx/model.onnx",
        ]);
        assert_eq!(small(&all, Need::Model), ["config.json", "tokenizer.json", "repro.json"]);
        assert_eq!(small(&all, Need::Tokenizer), ["config.json", "tokenizer.json"]);
        let both = names(&["consolidated.safetensors", "model.safetensors", "pytorch_model.bin"]);
        assert_eq!(weights(&both).unwrap(), Weights::Files(names(&["model.safetensors"])));
        assert_eq!(weights(&names(&["consolidated.safetensors", INDEX])).unwrap(), Weights::Indexed);
        assert_eq!(
            weights(&names(&["x/a.safetensors", "w.safetensors"])).unwrap(),
            Weights::Files(names(&["w.safetensors"]))
        );
    }

    #[test]
    fn pickles_are_refused() {
        assert!(weights(&names(&["pytorch_model.bin"])).unwrap_err().to_string().contains("pickle"));
        assert!(weights(&names(&["README.md"])).unwrap_err().to_string().contains("no *.safetensors"));
    }

    #[test]
    fn an_index_may_not_point_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join(INDEX);
        for (text, reason) in [
            ("{", "not JSON"),
            ("{}", "no weight_map"),
            (r#"{"weight_map": {}}"#, "lists no weights"),
            (r#"{"weight_map": {"a": "../x.safetensors"}}"#, "beside it"),
            (r#"{"weight_map": {"a": "x.bin"}}"#, "beside it"),
        ] {
            std::fs::write(&index, text).unwrap();
            assert!(format!("{:#}", shards(&index).unwrap_err()).contains(reason), "{text}");
        }
        std::fs::write(&index, r#"{"weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}"#)
            .unwrap();
        assert_eq!(shards(&index).unwrap(), ["1.safetensors", "2.safetensors"]);
    }
}
