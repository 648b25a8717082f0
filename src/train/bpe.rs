//! Trains a byte-level BPE tokenizer and writes it as transformers reads it, with a minimal chat template. Pure but for the
//! tokenizers crate; knows nothing of tables or places.
//!
//! Every text comes back as it was: the alphabet holds all 256 bytes, nothing is normalised, no space is put in front.

use anyhow::{anyhow, ensure};
use serde_json::json;
use tokenizers::{
    AddedToken, TokenizerBuilder,
    models::bpe::{BPE, BpeTrainerBuilder},
    normalizers::NormalizerWrapper,
    pre_tokenizers::byte_level::ByteLevel,
};

/// Bytes of the alphabet.
const BYTES: usize = 256;

/// Roles of the control tokens that every tokenizer made here has, in id order from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controls {
    /// Fills rows; never predicted.
    pub pad: String,
    /// Ends an answer.
    pub end: String,
    /// Begins a system message.
    pub system: String,
    /// Begins a user message.
    pub user: String,
    /// Begins an answer.
    pub assistant: String,
}

impl Default for Controls {
    fn default() -> Self {
        let token = |name: &str| format!("<|{name}|>");
        Self {
            pad: token("pad"),
            end: token("end"),
            system: token("system"),
            user: token("user"),
            assistant: token("assistant"),
        }
    }
}

impl Controls {
    fn all(&self) -> [&String; 5] {
        [&self.pad, &self.end, &self.system, &self.user, &self.assistant]
    }

    /// One token a turn and nothing around it: `<|user|>text<|assistant|>answer<|end|>`.
    pub fn chat_template(&self) -> String {
        let Self { end, system, user, assistant, .. } = self;
        format!(
            "{{% for message in messages %}}\
             {{% if message.role == 'system' %}}{{{{ '{system}' + message.content }}}}\
             {{% elif message.role == 'user' %}}{{{{ '{user}' + message.content }}}}\
             {{% else %}}{{{{ '{assistant}' + message.content + '{end}' }}}}{{% endif %}}\
             {{% endfor %}}{{% if add_generation_prompt %}}{{{{ '{assistant}' }}}}{{% endif %}}"
        )
    }
}

/// The files of a tokenizer directory.
#[derive(Debug, Clone)]
pub struct TokenizerFiles {
    /// `tokenizer.json`
    pub tokenizer: String,
    /// `tokenizer_config.json`
    pub config: String,
    /// Tokens that were made; fewer than asked for where the text holds no more pairs worth merging.
    pub vocab_size: usize,
}

/// Trains on `texts`. `vocab_size` counts everything: control tokens, `extra` special tokens, bytes, merges.
///
/// # Errors
/// No text; a vocabulary that cannot hold bytes and special tokens; a special token named twice or empty.
pub fn train(
    texts: &[String],
    vocab_size: usize,
    min_frequency: u64,
    controls: &Controls,
    extra: &[String],
) -> anyhow::Result<TokenizerFiles> {
    ensure!(texts.iter().any(|text| !text.is_empty()), "there is no text to train a tokenizer on");
    let special: Vec<&String> = controls.all().into_iter().chain(extra).collect();
    for (i, token) in special.iter().enumerate() {
        ensure!(!token.is_empty(), "a special token is empty");
        ensure!(!special[..i].contains(token), "the special token `{token}` is there twice");
    }
    let least = BYTES + special.len();
    ensure!(
        vocab_size >= least,
        "vocab_size {vocab_size} is too small: {BYTES} bytes and {} special tokens take {least}",
        special.len()
    );
    let byte_level = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::default()
        .with_model(BPE::default())
        .with_normalizer(None::<NormalizerWrapper>)
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(Some(byte_level.trim_offsets(false)))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(|e| anyhow!("cannot set up the tokenizer: {e}"))?;
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size)
        .min_frequency(min_frequency)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special.iter().map(|token| AddedToken::from(token.as_str(), true)).collect())
        .build();
    tokenizer.train(&mut trainer, texts.iter()).map_err(|e| anyhow!("tokenizer training failed: {e}"))?;
    Ok(TokenizerFiles {
        tokenizer: tokenizer.to_string(false).map_err(|e| anyhow!("cannot write the tokenizer: {e}"))?,
        config: tokenizer_config(controls, &special),
        vocab_size: tokenizer.get_vocab_size(true),
    })
}

fn tokenizer_config(controls: &Controls, special: &[&String]) -> String {
    let added: serde_json::Map<String, serde_json::Value> = special
        .iter()
        .enumerate()
        .map(|(id, token)| {
            let entry = json!({
                "content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true
            });
            (id.to_string(), entry)
        })
        .collect();
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": false,
        "added_tokens_decoder": added,
        "bos_token": null,
        "eos_token": controls.end,
        "pad_token": controls.pad,
        "unk_token": null,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 1_000_000,
        "chat_template": controls.chat_template(),
    });
    format!("{config:#}\n")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::text::{
        chat::{ChatTemplate, Message},
        tokenizer::{Special, Tokenizer},
    };
    use proptest::prelude::*;

    fn trained() -> TokenizerFiles {
        let texts: Vec<String> = (0..200)
            .map(|i| format!("The rain in Spain, no. {i}, falls mainly on the plain.\n\n  The plain is wide.\r\n"))
            .collect();
        train(&texts, 400, 2, &Controls::default(), &["<|extra|>".to_owned()]).unwrap()
    }

    #[test]
    fn merges_and_control_tokens() {
        let files = trained();
        assert!(files.vocab_size > 256 + 6 + 20 && files.vocab_size <= 400, "{}", files.vocab_size);
        let tokenizer = Tokenizer::from_bytes(files.tokenizer.as_bytes()).unwrap();
        assert_eq!(tokenizer.id("<|pad|>"), Some(0));
        assert_eq!(tokenizer.id("<|end|>"), Some(1));
        assert_eq!(tokenizer.id("<|extra|>"), Some(5));
        assert_eq!(tokenizer.encode(" plain", Special::Plain).unwrap().len(), 1);
        assert_eq!(tokenizer.encode("<|end|>", Special::Recognise).unwrap(), [1]);
        assert!(!tokenizer.encode("<|end|>", Special::Plain).unwrap().contains(&1));
    }

    #[test]
    fn renders_one_token_a_turn() {
        let files = trained();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tokenizer_config.json"), &files.config).unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), &files.tokenizer).unwrap();
        let chat = ChatTemplate::from_dir(dir.path()).unwrap().unwrap();
        let message = |role: &str, content: &str| Message { role: role.to_owned(), content: content.to_owned() };
        assert_eq!(chat.render(&[message("user", " a\n")]).unwrap(), "<|user|> a\n<|assistant|>");
        let turns = [message("system", "s"), message("user", "u"), message("assistant", "x"), message("user", "v")];
        assert_eq!(chat.render(&turns).unwrap(), "<|system|>s<|user|>u<|assistant|>x<|end|><|user|>v<|assistant|>");
    }

    #[test]
    fn refuses_what_cannot_be() {
        let check = |texts: &[&str], size, extra: &[&str], expected: &str| {
            let own = |list: &[&str]| -> Vec<String> { list.iter().map(|s| (*s).to_owned()).collect() };
            let error = train(&own(texts), size, 2, &Controls::default(), &own(extra)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(&[], 400, &[], "no text");
        check(&["", ""], 400, &[], "no text");
        check(&["a"], 260, &[], "take 261");
        check(&["a"], 400, &["<|end|>"], "twice");
    }

    proptest! {
        /// Any text comes back, whatever it holds; also one that spells out control tokens.
        #[test]
        fn round_trip(text in "(?s).{0,60}", token in prop::sample::select(vec!["", "<|end|>", "<|user|>", "\u{0}", "\r\n "])) {
            static FILES: std::sync::LazyLock<Tokenizer> =
                std::sync::LazyLock::new(|| Tokenizer::from_bytes(trained().tokenizer.as_bytes()).unwrap());
            let text = format!("{text}{token}{text}");
            let ids = FILES.encode(&text, Special::Plain).unwrap();
            prop_assert_eq!(FILES.decode(&ids).unwrap(), text);
        }
    }
}
