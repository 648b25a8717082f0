//! Runs rows of questions through a causal model and reads off what the scores are made of: the cross-entropy of each candidate,
//! and the most likely token at each place. Only the places that predict a continuation are multiplied with the output matrix.

use super::{
    batch::{Cut, Figures, Plan},
    prompt::Question,
    rows,
};
use crate::{
    engine::memory,
    models::{causal::CausalModel, device::DeviceSpec, weights},
};
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Tokens of one forward pass on a GPU, at least.
const GPU_BATCH_TOKENS: usize = 1 << 15;

/// Number type of weights and activations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// f32, as the harness scores.
    #[default]
    F32,
    /// bf16: faster; near ties may come out differently.
    Bf16,
}

/// Where and how a model scores.
#[derive(Debug, Clone)]
pub struct Options {
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// Number type.
    pub precision: Precision,
    /// Tokens of one forward pass at most, padding included. A GPU takes at least 32,768.
    pub batch_tokens: usize,
    /// CPU threads; 0 for all cores.
    pub threads: usize,
}

/// What a model answered to one question.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Mean cross-entropy of each candidate's continuation, in nats a token.
    pub losses: Vec<f32>,
    /// The candidate with the lowest loss, the first among equals; None where there is only one.
    pub prediction: Option<usize>,
    /// Whether the prediction is right; with one candidate, whether every token of it is the most likely one.
    pub correct: bool,
    /// With one candidate: the most likely tokens at its places.
    pub greedy: Option<Vec<u32>>,
}

/// A model that is ready to score. Stays on the thread that made it.
#[derive(Debug)]
pub struct Scorer {
    model: CausalModel,
    device: Device,
    kind: Kind,
    batch_tokens: usize,
    cut: Cut,
}

impl Scorer {
    /// Loads a model directory. Call it on the thread that scores: it sets that thread's number of CPU threads.
    ///
    /// # Errors
    /// The directory holds no model that can be loaded, the device is not there, the memory does not suffice.
    pub fn load(dir: &Path, options: &Options) -> anyhow::Result<Self> {
        ensure!(options.batch_tokens > 0, "batch_tokens is 0");
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        tch::set_num_threads(if options.threads == 0 { cores() } else { options.threads } as i32);
        let device = options.device.parse::<DeviceSpec>()?.resolve()?;
        let kind = match options.precision {
            Precision::F32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        let stored = weights::bytes_on_disk(dir)?;
        if let Some(free) = memory::available().filter(|_| device == Device::Cpu) {
            ensure!(
                stored < free,
                "{}: the weights take {}, but {} of memory are free",
                dir.display(),
                memory::human(stored),
                memory::human(free)
            );
        }
        let model = CausalModel::from_dir(dir, device, kind)?;
        let least = if device.is_cuda() { GPU_BATCH_TOKENS } else { 1 };
        let batch_tokens = options.batch_tokens.max(least);
        Ok(Self { model, device, kind, batch_tokens, cut: Cut::of(device) })
    }

    /// Tokens of one forward pass at most.
    pub fn batch_tokens(&self) -> usize {
        self.batch_tokens
    }

    /// Longest sequence of the model.
    pub fn max_positions(&self) -> usize {
        self.model.config().max_positions()
    }

    /// Rows of its output matrix.
    pub fn vocab_size(&self) -> usize {
        self.model.config().vocab_size()
    }

    /// Answers in the order of the questions. `batch` is told the tokens of every forward pass and may stop the work by an error.
    ///
    /// # Errors
    /// A token outside the vocabulary; out of memory; what `batch` gives.
    pub fn answers(
        &self,
        questions: &[Question],
        batch: &mut dyn FnMut(u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<Answer>> {
        let vocab = self.vocab_size();
        let outside = |t: &&u32| **t as usize >= vocab;
        if let Some(token) = questions.iter().flat_map(|q| &q.candidates).flat_map(|c| &c.tokens).find(outside) {
            anyhow::bail!(
                "token {token} is outside the model's vocabulary of {vocab}; the tokenizer is another model's"
            );
        }
        let mut parts: Vec<Vec<Scored>> =
            questions.iter().map(|q| vec![Scored::default(); q.candidates.len()]).collect();
        let rows = rows::rows(questions);
        let batches = rows::batches(&rows, self.batch_tokens);
        let plan = Plan::new(&batches, self.cut, vocab);
        let tokens = |part: &[rows::Row]| part.iter().map(|r| (r.prefix.len() + r.branch_tokens()) as u64).sum();
        let found = plan.run(&self.model, self.device, self.kind, &mut |number| batch(tokens(batches[number])))?;
        for (part, figures) in batches.iter().zip(&found) {
            for (b, row) in part.iter().enumerate() {
                for (&candidate, targets) in row.candidates.iter().zip(&row.targets) {
                    parts[row.question][candidate] = Scored::of(targets, b, figures);
                }
            }
        }
        Ok(questions.iter().zip(parts).map(|(question, scored)| answer(question, scored)).collect())
    }

    /// Mean cross-entropy of each row of `tokens` (all of one length T ≥ 2), over the T − 1 tokens after the first.
    ///
    /// # Errors
    /// Out of memory.
    pub fn losses(&self, tokens: &[Vec<u32>]) -> anyhow::Result<Vec<f64>> {
        let length = tokens.first().map_or(0, Vec::len);
        ensure!(
            length >= 2 && tokens.iter().all(|t| t.len() == length),
            "contexts of one length, of 2 tokens at least"
        );
        let _guard = tch::no_grad_guard();
        let ids: Vec<i64> = tokens.concat().into_iter().map(i64::from).collect();
        let all =
            Tensor::f_from_slice(&ids)?.f_reshape([tokens.len() as i64, length as i64])?.f_to_device(self.device)?;
        let steps = length as i64 - 1;
        let hidden = self.model.hidden(&all.narrow(1, 0, steps), self.kind);
        let hidden = hidden.reshape([tokens.len() as i64 * steps, -1]);
        let wanted = all.narrow(1, 1, steps).reshape([-1]);
        let mut losses = Vec::new();
        let chunk = self.cut.logit_rows;
        for start in (0..hidden.size()[0]).step_by(chunk) {
            let rows = (chunk as i64).min(hidden.size()[0] - start);
            let logits = self.model.logits(&hidden.narrow(0, start, rows));
            let picked = logits.gather(1, &wanted.narrow(0, start, rows).unsqueeze(1), false).squeeze_dim(1);
            losses.push(logits.logsumexp([1i64].as_slice(), false) - picked);
        }
        let losses = Tensor::f_cat(&losses, 0)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
        let losses = Vec::<f32>::try_from(losses).context("reading losses")?;
        let mean = |part: &[f32]| part.iter().map(|&l| f64::from(l)).sum::<f64>() / part.len() as f64;
        Ok(losses.chunks(steps as usize).map(mean).collect())
    }
}

/// One candidate.
#[derive(Debug, Clone, Default)]
struct Scored {
    loss: f32,
    greedy: Vec<u32>,
    exact: bool,
}

impl Scored {
    fn of(targets: &[rows::Target], b: usize, figures: &Figures) -> Self {
        let each = || targets.iter().map(|target| figures.of(b, target));
        let greedy: Vec<u32> = each().map(|(_, best)| best).collect();
        Self {
            loss: (each().map(|(loss, _)| f64::from(loss)).sum::<f64>() / targets.len() as f64) as f32,
            exact: targets.iter().zip(&greedy).all(|(t, best)| t.token == *best),
            greedy,
        }
    }
}

fn answer(question: &Question, mut scored: Vec<Scored>) -> Answer {
    let losses: Vec<f32> = scored.iter().map(|s| s.loss).collect();
    let Some(gold) = question.gold else {
        let one = scored.pop().unwrap_or_default();
        return Answer { losses, prediction: None, correct: one.exact, greedy: Some(one.greedy) };
    };
    let mut lowest = 0;
    for (i, loss) in losses.iter().enumerate() {
        if *loss < losses[lowest] {
            lowest = i;
        }
    }
    Answer { losses, prediction: Some(lowest), correct: lowest == gold, greedy: None }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{
        super::{prompt, read, tasks::find},
        *,
    };
    use crate::{eval::prompt::Prompter, text::tokenizer::Tokenizer};
    use std::{collections::BTreeMap, path::PathBuf};

    fn golden() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/eval")
    }

    fn scorer(batch_tokens: usize, precision: Precision) -> Scorer {
        let options = Options { device: "cpu".into(), precision, batch_tokens, threads: 1 };
        Scorer::load(&golden().join("model"), &options).unwrap()
    }

    fn questions(label: &str) -> Vec<Question> {
        let task = find(label).unwrap();
        let bytes = std::fs::read(golden().join("local_data").join(task.file)).unwrap();
        let items = read::read(task, task.file, &bytes).unwrap();
        let prompter = Prompter::new(Tokenizer::from_dir(&golden().join("model")).unwrap(), 400).unwrap();
        let plans = prompt::plan(task, &items, None);
        prompter.questions(task, &items, &plans).into_iter().map(Result::unwrap).collect()
    }

    #[derive(serde::Deserialize)]
    struct Expected {
        items: Vec<Item>,
    }

    #[derive(serde::Deserialize)]
    struct Item {
        losses: Vec<f32>,
        prediction: Option<usize>,
        correct: bool,
        greedy: Option<Vec<u32>>,
    }

    fn expected() -> BTreeMap<String, Expected> {
        serde_json::from_str(&std::fs::read_to_string(golden().join("expected.json")).unwrap()).unwrap()
    }

    /// The golden file scores each candidate alone with transformers; here they share prefixes and batches, cut as for a CPU and for a GPU.
    #[test]
    fn answers_are_those_of_transformers() {
        for (batch_tokens, cut) in [(1, Cut::CPU), (5_000, Cut::CPU), (5_000, Cut { logit_rows: 3, ..Cut::GPU })] {
            let scorer = Scorer { cut, ..scorer(batch_tokens, Precision::F32) };
            for (label, expected) in expected() {
                let mut tokens = 0;
                let questions = questions(&label);
                let answers = scorer
                    .answers(&questions, &mut |n| {
                        tokens += n;
                        Ok(())
                    })
                    .unwrap();
                let alone: usize = questions.iter().flat_map(|q| &q.candidates).map(|c| c.tokens.len()).sum();
                assert!(tokens > 0 && tokens < alone as u64, "{label}: {tokens} of {alone} tokens computed");
                for (i, (answer, item)) in answers.iter().zip(&expected.items).enumerate() {
                    assert_eq!(answer.prediction, item.prediction, "{label} {i}");
                    assert_eq!(answer.correct, item.correct, "{label} {i}");
                    assert_eq!(answer.greedy, item.greedy, "{label} {i}");
                    for (a, b) in answer.losses.iter().zip(&item.losses) {
                        assert!((a - b).abs() < 5e-5, "{label} {i}: {a} {b}");
                    }
                }
                assert_eq!(answers.len(), expected.items.len());
            }
        }
    }

    #[test]
    fn bf16_is_close() {
        let exact = &expected()["arc_easy"];
        let answers = scorer(1000, Precision::Bf16).answers(&questions("arc_easy"), &mut |_| Ok(())).unwrap();
        for (answer, item) in answers.iter().zip(&exact.items) {
            assert!(answer.losses.iter().zip(&item.losses).all(|(a, b)| (a - b).abs() < 0.1));
        }
    }

    /// A context whole must cost what its tokens cost one after the other as questions.
    #[test]
    fn held_out_losses_are_means_over_tokens() {
        let scorer = scorer(1000, Precision::F32);
        let contexts = vec![vec![5, 9, 300, 7], vec![1, 2, 3, 4]];
        let losses = scorer.losses(&contexts).unwrap();
        for (context, loss) in contexts.iter().zip(losses) {
            let candidate = prompt::Candidate { tokens: context.clone(), from: 1 };
            let question = Question { index: 0, gold: None, candidates: vec![candidate], trimmed: false };
            let answer = &scorer.answers(&[question], &mut |_| Ok(())).unwrap()[0];
            assert!((f64::from(answer.losses[0]) - loss).abs() < 1e-5, "{answer:?} {loss}");
        }
        assert!(scorer.losses(&[vec![1]]).is_err() && scorer.losses(&[vec![1, 2], vec![1, 2, 3]]).is_err());
    }

    #[test]
    fn tokens_of_another_tokenizer_and_an_interruption_end_the_work() {
        let scorer = scorer(1000, Precision::F32);
        let candidate = prompt::Candidate { tokens: vec![1, 384], from: 1 };
        let question = Question { index: 0, gold: None, candidates: vec![candidate], trimmed: false };
        let error = scorer.answers(&[question], &mut |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("token 384 is outside the model's vocabulary of 384"), "{error}");
        let error = scorer.answers(&questions("copa"), &mut |_| anyhow::bail!("stopped")).unwrap_err();
        assert_eq!(error.to_string(), "stopped");
    }
}
