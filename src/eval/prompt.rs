//! From items to token ids, as the harness builds prompts (reference section 8.1). Pure: knows no model.
//!
//! A prompt is three parts, each tokenised on its own: the solved examples (with whatever the tokenizer itself puts before a
//! text: nothing for GPT-NeoX, a bos for Llama), the item's context, and a continuation with a space before it. Examples are
//! joined by a newline; the context loses the space at its end. What is too long is cut off on the left.

use super::{
    draw::Draws,
    read::{Body, Item, strip_end},
    tasks::Task,
};
use crate::text::tokenizer::{Special, Tokenizer};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Between two examples.
const EXAMPLE_DELIMITER: &str = "\n";

/// An item with the examples before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Which item of the file.
    pub item: usize,
    /// Which items are its examples, in order.
    pub examples: Vec<usize>,
}

/// Draws the examples of the first `limit` items (all without a limit), in the order of evaluation: the file's; with categories,
/// category by category in the order of their names, each with a generator and examples of its own. A limit is shared evenly by
/// the categories, at least one item each.
pub fn plan(task: &Task, items: &[Item], limit: Option<usize>) -> Vec<Plan> {
    let mut parts: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        parts.entry(item.category.as_deref()).or_default().push(i);
    }
    let each = limit.map_or(usize::MAX, |limit| (limit / parts.len().max(1)).max(1));
    let mut plans = Vec::new();
    for part in parts.values() {
        let mut draws = Draws::default();
        for i in 0..part.len().min(each) {
            let examples = draws.next(part.len(), task.shots, i).into_iter().map(|e| part[e]).collect();
            plans.push(Plan { item: part[i], examples });
        }
    }
    plans
}

/// An item in token ids.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Row of the file, from 0.
    pub index: usize,
    /// Which candidate is right; None where the only one has to be given word for word.
    pub gold: Option<usize>,
    /// What is scored.
    pub candidates: Vec<Candidate>,
    /// Something was cut off on the left.
    pub trimmed: bool,
}

/// A whole sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Context and continuation.
    pub tokens: Vec<u32>,
    /// Where the continuation starts; at least 1.
    pub from: usize,
}

/// Builds questions for one tokenizer and one length.
#[derive(Clone)]
pub struct Prompter {
    tokenizer: Tokenizer,
    max_length: usize,
    /// The tokenizer has a token for a letter with a space before it, so a continuation needs one.
    space: bool,
}

impl Prompter {
    /// `max_length`: tokens of a whole sequence at most.
    ///
    /// # Errors
    /// The tokenizer cannot encode.
    pub fn new(tokenizer: Tokenizer, max_length: usize) -> anyhow::Result<Self> {
        let space = tokenizer.encode(" a", Special::Recognise)?.len() == 1;
        Ok(Self { tokenizer, max_length, space })
    }

    /// The questions of some plans, on all cores. An item that cannot be asked is an error of its own.
    pub fn questions(&self, task: &Task, items: &[Item], plans: &[Plan]) -> Vec<anyhow::Result<Question>> {
        plans.par_iter().map(|plan| self.question(task, items, plan)).collect()
    }

    /// One question.
    ///
    /// # Errors
    /// The continuation alone fills the context, or nothing stands before it.
    pub fn question(&self, task: &Task, items: &[Item], plan: &Plan) -> anyhow::Result<Question> {
        let item = &items[plan.item];
        let shown = shown(task, items, &plan.examples);
        let before = self.before(&shown)?;
        let mut trimmed = false;
        let mut candidates = Vec::new();
        match &item.body {
            Body::Choice { query, choices, .. } => {
                let context = self.context(task, &before, &shown, query)?;
                for choice in choices {
                    candidates.push(self.candidate(&context, choice, &mut trimmed)?);
                }
            }
            Body::Text { context, continuation } => {
                let context = self.context(task, &before, &shown, context)?;
                candidates.push(self.candidate(&context, continuation, &mut trimmed)?);
            }
            Body::Schema { contexts, continuation, .. } => {
                for option in contexts {
                    let text = schema_context(task, &shown, option);
                    let context = [before.as_slice(), &self.encode(&text)?].concat();
                    candidates.push(self.candidate(&context, continuation, &mut trimmed)?);
                }
            }
        }
        Ok(Question { index: item.index, gold: item.body.gold(), candidates, trimmed })
    }

    fn encode(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        self.tokenizer.encode(text, Special::Recognise)
    }

    /// The examples with the tokenizer's own start. What it puts at an end would stand in the middle of the prompt.
    fn before(&self, shown: &str) -> anyhow::Result<Vec<u32>> {
        Ok([self.tokenizer.affixes().0, &self.encode(shown)?].concat())
    }

    fn context(&self, task: &Task, before: &[u32], shown: &str, context: &str) -> anyhow::Result<Vec<u32>> {
        let join = if shown.is_empty() { "" } else { EXAMPLE_DELIMITER };
        let text = format!("{join}{context}{}", task.delimiter);
        Ok([before, &self.encode(strip_end(&text))?].concat())
    }

    fn candidate(&self, context: &[u32], continuation: &str, trimmed: &mut bool) -> anyhow::Result<Candidate> {
        let space = if self.space && !continuation.starts_with(' ') { " " } else { "" };
        let answer = self.encode(&format!("{space}{continuation}"))?;
        anyhow::ensure!(!answer.is_empty(), "the continuation {continuation:?} has no token");
        anyhow::ensure!(
            answer.len() < self.max_length,
            "the continuation alone has {} tokens, the context holds {}; raise max_length if the model has more positions",
            answer.len(),
            self.max_length
        );
        let room = self.max_length - answer.len();
        let cut = context.len().saturating_sub(room);
        *trimmed |= cut > 0;
        let context = &context[cut..];
        anyhow::ensure!(
            !context.is_empty(),
            "nothing stands before the continuation, so its first token has no probability"
        );
        Ok(Candidate { tokens: [context, &answer].concat(), from: context.len() })
    }
}

/// The solved examples as one text.
fn shown(task: &Task, items: &[Item], examples: &[usize]) -> String {
    let mut text = String::new();
    for &example in examples {
        if !text.is_empty() {
            text.push_str(EXAMPLE_DELIMITER);
        }
        let (context, answer) = match &items[example].body {
            Body::Choice { query, choices, gold } => (query, &choices[*gold]),
            Body::Schema { contexts, continuation, gold } => (&contexts[*gold], continuation),
            Body::Text { context, continuation } => (context, continuation),
        };
        text.push_str(context);
        text.push_str(task.delimiter);
        text.push_str(answer);
    }
    text
}

/// After examples the delimiter's end is stripped; without them there is none at all.
fn schema_context(task: &Task, shown: &str, option: &str) -> String {
    if shown.is_empty() {
        return option.to_owned();
    }
    format!("{EXAMPLE_DELIMITER}{option}{}", strip_end(task.delimiter))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{
        super::{read, tasks::find},
        *,
    };
    use std::path::PathBuf;

    fn golden() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/eval")
    }

    fn items(label: &str) -> (&'static Task, Vec<Item>) {
        let task = find(label).unwrap();
        let bytes = std::fs::read(golden().join("local_data").join(task.file)).unwrap();
        (task, read::read(task, task.file, &bytes).unwrap())
    }

    fn prompter(max_length: usize) -> Prompter {
        Prompter::new(Tokenizer::from_dir(&golden().join("model")).unwrap(), max_length).unwrap()
    }

    #[derive(serde::Deserialize)]
    struct Expected {
        items: Vec<ExpectedItem>,
        prompts: BTreeMap<usize, Vec<Prompt>>,
    }

    #[derive(serde::Deserialize)]
    struct ExpectedItem {
        item: usize,
        tokens: usize,
        trimmed: bool,
    }

    #[derive(serde::Deserialize)]
    struct Prompt {
        tokens: Vec<u32>,
        from: usize,
    }

    /// tests/golden/eval.py, whose prompts were compared with those of llm-foundry 0.9.0 itself.
    #[test]
    fn prompts_are_the_harness_s_token_for_token() {
        let text = std::fs::read_to_string(golden().join("expected.json")).unwrap();
        let expected: BTreeMap<String, Expected> = serde_json::from_str(&text).unwrap();
        assert_eq!(expected.len(), 11);
        let prompter = prompter(400);
        for (label, expected) in expected {
            let (task, items) = items(&label);
            let plans = plan(task, &items, None);
            let order: Vec<usize> = plans.iter().map(|p| p.item).collect();
            assert_eq!(order, expected.items.iter().map(|i| i.item).collect::<Vec<_>>(), "{label}: order");
            for (question, wanted) in prompter.questions(task, &items, &plans).into_iter().zip(&expected.items) {
                let question = question.unwrap();
                let longest = question.candidates.iter().map(|c| c.tokens.len()).max().unwrap();
                assert_eq!((longest, question.trimmed), (wanted.tokens, wanted.trimmed), "{label} {}", wanted.item);
                for (i, prompt) in expected.prompts.get(&wanted.item).into_iter().flatten().enumerate() {
                    assert_eq!(question.candidates[i].tokens, prompt.tokens, "{label} {} {i}", wanted.item);
                    assert_eq!(question.candidates[i].from, prompt.from, "{label} {} {i}", wanted.item);
                }
            }
        }
    }

    #[test]
    fn a_limit_keeps_the_examples_of_a_full_run_and_is_shared_by_the_categories() {
        let (task, own) = items("piqa");
        assert_eq!(plan(task, &own, Some(4)), plan(task, &own, None)[..4]);
        let (task, split) = items("jeopardy");
        let plans = plan(task, &split, Some(7));
        let category = |p: &Plan| split[p.item].category.clone().unwrap();
        let found: Vec<String> = plans.iter().map(category).collect();
        assert_eq!(found, ["literature", "literature", "science", "science", "world_history", "world_history"]);
        for plan in plans {
            assert!(plan.examples.iter().all(|&e| split[e].category.as_ref() == Some(&category(&plan))));
        }
        assert_eq!(plan(task, &split, Some(1)).len(), 3, "one item a category at least");
    }

    #[test]
    fn what_does_not_fit_loses_its_start_or_is_refused() {
        let (task, items) = items("lambada_openai");
        let plans = plan(task, &items, None);
        let whole = prompter(400).question(task, &items, &plans[0]).unwrap();
        let [whole] = &whole.candidates[..] else { panic!("one candidate") };
        let answer = whole.tokens.len() - whole.from;
        let cut = prompter(answer + 3).question(task, &items, &plans[0]).unwrap();
        assert!(cut.trimmed);
        assert_eq!(cut.candidates[0].tokens, whole.tokens[whole.from - 3..]);
        let error = prompter(answer).question(task, &items, &plans[0]).unwrap_err().to_string();
        assert!(error.contains(&format!("the continuation alone has {answer} tokens")), "{error}");
        let bare = [Item { body: Body::Text { context: String::new(), continuation: "x".into() }, ..items[0].clone() }];
        let error = prompter(9).question(task, &bare, &plan(task, &bare, None)[0]).unwrap_err().to_string();
        assert!(error.contains("nothing stands before the continuation"), "{error}");
    }
}
