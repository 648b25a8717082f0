//! Chat templates (Jinja, as in tokenizer_config.json or chat_template.jinja), rendered as transformers' `apply_chat_template` does:
//! trimmed blocks, loop controls, Python's string methods and JSON spelling, `raise_exception`, `strftime_now`.
//! Knows nothing of tokens: the caller tokenises what stands around a document apart from the document.
//!
//! Departures from transformers: `strftime_now` gives a fixed date (26 Jul 2024, the one that Llama's templates fall back to) unless
//! [`ChatTemplate::with_date`] sets another, because the same rows must come out tomorrow; and `enable_thinking` is false unless
//! [`ChatTemplate::with_thinking`] says otherwise, because a rephraser that thinks aloud spends its tokens before the answer.

use anyhow::{Context, bail};
use chrono::{NaiveDate, NaiveDateTime};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde_json::Value as Json;
use std::{collections::BTreeMap, path::Path};

/// One turn of a conversation.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Message {
    /// system, user or assistant.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role` (system, user, assistant).
    pub fn new(role: &str, content: impl Into<String>) -> Self {
        Self { role: role.to_owned(), content: content.into() }
    }
}

/// A compiled template with its bos and eos strings.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token`, …: undefined in the template where the model has none
    tokens: BTreeMap<String, String>,
    thinking: bool,
}

/// Stands for the document while a template is rendered: private-use characters, which no template treats specially.
const STAND_IN: &str = "\u{f8ff}\u{e000}document\u{e001}\u{f8ff}";
const NAME: &str = "chat template";

impl ChatTemplate {
    /// None where the directory has no template (a base model): the prompt is then used as it is.
    /// `chat_template.jinja` goes before `tokenizer_config.json`, as in transformers.
    pub fn from_dir(dir: &Path) -> anyhow::Result<Option<Self>> {
        let config = read_json(&dir.join("tokenizer_config.json"))?;
        let map = read_json(&dir.join("special_tokens_map.json"))?;
        let file = dir.join("chat_template.jinja");
        let (source, from) = match read(&file)? {
            Some(source) => (source, file),
            None => match template_of(&config) {
                Ok(Some(source)) => (source, dir.join("tokenizer_config.json")),
                Ok(None) => return Ok(None),
                Err(error) => return Err(error.context(dir.join("tokenizer_config.json").display().to_string())),
            },
        };
        let mut tokens = special_tokens(&map);
        tokens.extend(special_tokens(&config));
        Self::new(&source, tokens).with_context(|| from.display().to_string()).map(Some)
    }

    /// Compiles a template; `tokens` holds `bos_token`, `eos_token` and the like.
    pub fn new(source: &str, tokens: BTreeMap<String, String>) -> anyhow::Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", python_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, format!("the template refuses: {message}")))
        });
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|error| anyhow::anyhow!("the chat template does not compile: {error}"))?;
        let template = Self { environment, tokens, thinking: false };
        Ok(template.with_date(NaiveDate::from_ymd_opt(2024, 7, 26).expect("a date of the calendar")))
    }

    /// Whether templates that know `enable_thinking` let the model think. Default: no.
    #[must_use]
    pub fn with_thinking(mut self, thinking: bool) -> Self {
        self.thinking = thinking;
        self
    }

    /// The date that `strftime_now` formats.
    #[must_use]
    pub fn with_date(mut self, date: NaiveDate) -> Self {
        let now = date.and_hms_opt(0, 0, 0).expect("midnight exists without a time zone");
        self.environment.add_function("strftime_now", move |format: String| strftime(now, &format));
        self
    }

    /// Renders with `add_generation_prompt = true`.
    pub fn render(&self, messages: &[Message]) -> anyhow::Result<String> {
        let template = self.environment.get_template(NAME).expect("added when the template was compiled");
        let none = Value::from(());
        let values = context! {
            messages, tools => none, documents => none, add_generation_prompt => true, enable_thinking => self.thinking,
            ..Value::from_serialize(&self.tokens)
        };
        template.render(values).map_err(|error| anyhow::anyhow!("the chat template fails: {}", innermost(&error)))
    }

    /// Renders a conversation whose last message is a user's `before + document + after`, and returns what stands before and after
    /// the document. The document itself takes no part, so it cannot act on the template.
    pub fn render_split(&self, earlier: &[Message], before: &str, after: &str) -> anyhow::Result<(String, String)> {
        let mut messages = earlier.to_vec();
        messages.push(Message::new("user", [before, STAND_IN, after].concat()));
        let rendered = self.render(&messages)?;
        match rendered.match_indices(STAND_IN).count() {
            1 => {}
            0 => bail!("the chat template leaves out or alters the user's message"),
            n => bail!("the chat template writes the user's message {n} times; it must write it once"),
        }
        let (head, tail) = rendered.split_once(STAND_IN).expect("counted above");
        Ok((head.to_owned(), tail.to_owned()))
    }
}

/// The outermost message of minijinja repeats the inner ones badly; the last cause says what the template said.
fn innermost(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = inner.to_string();
        cause = inner.source();
    }
    text
}

/// transformers accepts `{% generation %}` blocks (they mark the tokens to train on). They print their body.
fn without_generation_marks(source: &str) -> String {
    let open = regex::Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}").expect("a fixed pattern");
    let close = regex::Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}").expect("a fixed pattern");
    let source = open.replace_all(source, "{%$1 if true $2%}");
    close.replace_all(&source, "{%$1 endif $2%}").into_owned()
}

fn strftime(now: NaiveDateTime, format: &str) -> Result<String, Error> {
    use std::fmt::Write;
    let mut text = String::new();
    write!(text, "{}", now.format(format))
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: bad format {format:?}")))?;
    Ok(text)
}

/// `json.dumps(value, ensure_ascii=False, indent, separators, sort_keys)`.
fn python_json(value: &Value, options: minijinja::value::Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let fail = |error| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}"));
    let json: Json = serde_json::to_value(value).map_err(fail)?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators takes two strings")),
        None => (if indent.is_some() { "," } else { ", " }, ": "),
    };
    let mut out = String::new();
    JsonStyle { indent, item, key, sort_keys }.write(&json, 0, &mut out);
    Ok(out)
}

/// How Python spells JSON.
struct JsonStyle<'a> {
    indent: Option<usize>,
    item: &'a str,
    key: &'a str,
    sort_keys: bool,
}

impl JsonStyle<'_> {
    fn write(&self, json: &Json, depth: usize, out: &mut String) {
        match json {
            Json::Array(items) => self.list(items.iter().map(|item| (None, item)), ('[', ']'), depth, out),
            Json::Object(map) => {
                let mut entries: Vec<_> = map.iter().map(|(name, item)| (Some(name.as_str()), item)).collect();
                if self.sort_keys {
                    entries.sort_by_key(|(name, _)| *name);
                }
                self.list(entries.into_iter(), ('{', '}'), depth, out);
            }
            leaf => out.push_str(&leaf.to_string()),
        }
    }

    fn list<'j>(
        &self,
        entries: impl Iterator<Item = (Option<&'j str>, &'j Json)>,
        brackets: (char, char),
        depth: usize,
        out: &mut String,
    ) {
        let line = |depth: usize, out: &mut String| {
            if let Some(width) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', width * depth));
            }
        };
        out.push(brackets.0);
        let mut empty = true;
        for (name, item) in entries {
            if !empty {
                out.push_str(self.item);
            }
            empty = false;
            line(depth + 1, out);
            if let Some(name) = name {
                out.push_str(&Json::from(name).to_string());
                out.push_str(self.key);
            }
            self.write(item, depth + 1, out);
        }
        if !empty {
            line(depth, out);
        }
        out.push(brackets.1);
    }
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{}: cannot read", path.display())),
    }
}

/// Null where the file is absent.
fn read_json(path: &Path) -> anyhow::Result<Json> {
    match read(path)? {
        None => Ok(Json::Null),
        Some(text) => serde_json::from_str(&text).with_context(|| format!("{}: not JSON", path.display())),
    }
}

/// `chat_template`: a string, or a list of `{name, template}` of which `default` is taken.
fn template_of(config: &Json) -> anyhow::Result<Option<String>> {
    match config.get("chat_template") {
        None | Some(Json::Null) => Ok(None),
        Some(Json::String(source)) => Ok(Some(source.clone())),
        Some(Json::Array(list)) => {
            let named = |entry: &&Json| entry.get("name").and_then(Json::as_str) == Some("default");
            let entry = list.iter().find(named).or(if list.len() == 1 { list.first() } else { None });
            match entry.and_then(|entry| entry.get("template")).and_then(Json::as_str) {
                Some(source) => Ok(Some(source.to_owned())),
                None => bail!("chat_template lists {} templates and none is named \"default\"", list.len()),
            }
        }
        Some(_) => bail!("chat_template is neither a string nor a list of named templates"),
    }
}

/// All `…_token` entries, given as strings or as objects with `content`.
fn special_tokens(config: &Json) -> BTreeMap<String, String> {
    let entries = config.as_object().into_iter().flatten();
    entries
        .filter(|(name, _)| name.ends_with("_token"))
        .filter_map(|(name, value)| {
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some((name.clone(), text.to_owned()))
        })
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        template: String,
        tokens: BTreeMap<String, String>,
        messages: Vec<BTreeMap<String, String>>,
        thinking: bool,
        expected: Option<String>,
        error: Option<String>,
    }

    impl Case {
        fn template(&self) -> ChatTemplate {
            let template = ChatTemplate::new(&self.template, self.tokens.clone()).unwrap();
            template.with_thinking(self.thinking).with_date(NaiveDate::from_ymd_opt(2025, 3, 9).unwrap())
        }
        fn messages(&self) -> Vec<Message> {
            self.messages.iter().map(|turn| Message::new(&turn["role"], turn["content"].as_str())).collect()
        }
    }

    fn cases() -> Vec<Case> {
        serde_json::from_str(include_str!("../../tests/golden/chat.json")).unwrap()
    }

    fn write(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    const ONE: &[(&str, &str)] = &[("user", "hi")];

    fn render(files: &[(&str, &str)], turns: &[(&str, &str)]) -> String {
        let template = ChatTemplate::from_dir(write(files).path()).unwrap().unwrap();
        template.render(&turns.iter().map(|(role, content)| Message::new(role, *content)).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn renders_as_transformers_does() {
        for case in cases() {
            match (case.template().render(&case.messages()), &case.expected, &case.error) {
                (Ok(text), Some(expected), _) => assert_eq!(&text, expected, "{}", case.name),
                (Err(error), None, Some(expected)) => {
                    assert!(error.to_string().contains(expected.as_str()), "{}: {error}", case.name);
                }
                (result, ..) => panic!("{}: {result:?}, expected {:?} {:?}", case.name, case.expected, case.error),
            }
        }
    }

    #[test]
    fn split_parts_join_to_the_rendered_text() {
        for case in cases().iter().filter(|case| case.name.ends_with("/user/False") && !case.name.starts_with("loops"))
        {
            let (head, tail) = case.template().render_split(&[], "Rewrite: ", "").unwrap();
            assert_eq!(Some([head.as_str(), "{TEXT}", &tail].concat()), case.expected, "{}", case.name);
        }
    }

    #[test]
    fn a_template_that_drops_or_repeats_the_document_is_refused() {
        let split = |source: &str| {
            ChatTemplate::new(source, BTreeMap::new()).unwrap().render_split(&[], "a", "b").unwrap_err().to_string()
        };
        assert!(split("fixed").contains("leaves out"));
        assert!(split("{{ messages[0].content }}{{ messages[0].content }}").contains("2 times"));
    }

    #[test]
    fn finds_the_template_where_transformers_keeps_it() {
        let listed = r#"{"chat_template": [{"name": "tool", "template": "T"}, {"name": "default", "template": "D{{ eos_token }}"}],
                         "eos_token": {"content": "<e>", "lstrip": false}}"#;
        assert_eq!(render(&[("tokenizer_config.json", listed)], ONE), "D<e>");
        let config = r#"{"chat_template": "C{{ bos_token }}", "bos_token": null}"#;
        let map = r#"{"bos_token": {"content": "<b>"}}"#;
        assert_eq!(render(&[("tokenizer_config.json", config), ("special_tokens_map.json", map)], ONE), "C<b>");
        assert_eq!(render(&[("tokenizer_config.json", config), ("chat_template.jinja", "J\n")], ONE), "J");
        assert!(ChatTemplate::from_dir(write(&[]).path()).unwrap().is_none());
        assert!(ChatTemplate::from_dir(write(&[("tokenizer_config.json", "{}")]).path()).unwrap().is_none());
    }

    #[test]
    fn the_date_is_fixed() {
        let text = render(&[("chat_template.jinja", "{{ strftime_now('%d %b %Y') }}")], ONE);
        assert_eq!(text, "26 Jul 2024");
    }

    #[test]
    fn errors_name_the_file_and_the_reason() {
        let fails = |files: &[(&str, &str)]| format!("{:#}", ChatTemplate::from_dir(write(files).path()).unwrap_err());
        let error = fails(&[("chat_template.jinja", "{% if %}")]);
        assert!(error.contains("chat_template.jinja") && error.contains("does not compile"), "{error}");
        let error = fails(&[("tokenizer_config.json", "{")]);
        assert!(error.contains("tokenizer_config.json: not JSON"), "{error}");
        let error = fails(&[("tokenizer_config.json", r#"{"chat_template": 3}"#)]);
        assert!(error.contains("neither a string"), "{error}");
        let template = ChatTemplate::new("{{ strftime_now('%Q!') }}", BTreeMap::new()).unwrap();
        assert!(template.render(&[]).unwrap_err().to_string().contains("bad format"));
        let template = ChatTemplate::new("{{ raise_exception('no ' + 'way') }}", BTreeMap::new()).unwrap();
        assert!(template.render(&[]).unwrap_err().to_string().contains("the template refuses: no way"));
    }
}
