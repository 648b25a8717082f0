//! Runs rows of questions through a causal model and reads off what the scores are made of: the cross-entropy of each candidate,
//! and the most likely token at each place. Only the places that predict a continuation are multiplied with the output matrix.

use super::{
    prompt::Question,
    rows::{self, Place, Row},
};
use crate::{
    engine::memory,
    models::{
        causal::CausalModel,
        decoder::{Branches, RopeTables},
        device::DeviceSpec,
        weights,
    },
};
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};
use tch::{Device, Kind, Tensor};

/// Rows of the output matmul at a time: 512 logits of 50,000 tokens are 100 MB.
const LOGIT_ROWS: i64 = 512;

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
    /// Tokens of one forward pass at most, padding included.
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
        Ok(Self { model, device, kind, batch_tokens: options.batch_tokens })
    }

    /// A model that is in memory already, on the CPU.
    pub fn new(model: CausalModel, kind: Kind, batch_tokens: usize) -> Self {
        Self { model, device: Device::Cpu, kind, batch_tokens: batch_tokens.max(1) }
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
        for part in rows::batches(&rows, self.batch_tokens) {
            for (row, scored) in part.iter().zip(self.batch(part)?) {
                for (&candidate, scored) in row.candidates.iter().zip(scored) {
                    parts[row.question][candidate] = scored;
                }
            }
            batch(part.iter().map(|r| (r.prefix.len() + r.branch_tokens()) as u64).sum())?;
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
        let mut losses = Vec::with_capacity(ids.len());
        for start in (0..hidden.size()[0]).step_by(LOGIT_ROWS as usize) {
            let rows = LOGIT_ROWS.min(hidden.size()[0] - start);
            let logits = self.model.logits(&hidden.narrow(0, start, rows));
            let picked = logits.gather(1, &wanted.narrow(0, start, rows).unsqueeze(1), false).squeeze_dim(1);
            losses.extend(floats(&(logits.logsumexp([1i64].as_slice(), false) - picked))?);
        }
        let mean = |part: &[f32]| part.iter().map(|&l| f64::from(l)).sum::<f64>() / part.len() as f64;
        Ok(losses.chunks(steps as usize).map(mean).collect())
    }

    /// One forward pass. For each row, each of its candidates.
    fn batch(&self, rows: &[Row]) -> anyhow::Result<Vec<Vec<Scored>>> {
        let _guard = tch::no_grad_guard();
        let layout = Layout::of(rows);
        let tokens = layout.tokens(rows, self.device)?;
        let hidden = match layout.branch {
            0 => self.model.hidden(&tokens, self.kind),
            _ => {
                let plain = self.model.rope(layout.positions(rows), self.device, self.kind);
                self.model.hidden_with(&tokens, &layout.tables(rows, &plain, self.device, self.kind)?, self.kind)
            }
        };
        let hidden = hidden.flatten(0, 1);
        // Several candidates may be predicted from one place: its logits are computed once.
        let mut wanted: BTreeMap<i64, BTreeSet<u32>> = BTreeMap::new();
        for (b, row) in rows.iter().enumerate() {
            for target in row.targets.iter().flatten() {
                wanted.entry(layout.flat(b, target.place)).or_default().insert(target.token);
            }
        }
        let read = self.read(&hidden, &wanted)?;
        let scored = |b: usize, row: &Row| row.targets.iter().map(|t| Scored::of(t, b, &layout, &read)).collect();
        Ok(rows.iter().enumerate().map(|(b, row)| scored(b, row)).collect())
    }

    /// Logits at the wanted rows of `hidden` [N, H]: the cross-entropy of each wanted token there, and the most likely token.
    fn read(&self, hidden: &Tensor, wanted: &BTreeMap<i64, BTreeSet<u32>>) -> anyhow::Result<Read> {
        let mut read = Read::default();
        let entries: Vec<(i64, &BTreeSet<u32>)> = wanted.iter().map(|(place, tokens)| (*place, tokens)).collect();
        for part in entries.chunks(LOGIT_ROWS as usize) {
            let places: Vec<i64> = part.iter().map(|(place, _)| *place).collect();
            let index = Tensor::f_from_slice(&places)?.f_to_device(self.device)?;
            let logits = self.model.logits(&hidden.index_select(0, &index));
            let vocab = logits.size()[1];
            let (mut flat, mut rows, mut keys) = (Vec::new(), Vec::new(), Vec::new());
            for (row, (place, tokens)) in part.iter().enumerate() {
                for &token in *tokens {
                    flat.push(row as i64 * vocab + i64::from(token));
                    rows.push(row as i64);
                    keys.push((*place, token));
                }
            }
            let on_device = |v: &[i64]| anyhow::Ok(Tensor::f_from_slice(v)?.f_to_device(self.device)?);
            let total = logits.logsumexp([1i64].as_slice(), false).index_select(0, &on_device(&rows)?);
            let losses = floats(&(total - logits.take(&on_device(&flat)?)))?;
            read.losses.extend(keys.into_iter().zip(losses));
            let best = Vec::<i64>::try_from(logits.argmax(-1, false).to_device(Device::Cpu))?;
            read.best.extend(places.into_iter().zip(best.into_iter().map(|t| t as u32)));
        }
        Ok(read)
    }
}

fn floats(tensor: &Tensor) -> anyhow::Result<Vec<f32>> {
    Vec::<f32>::try_from(tensor.to_kind(Kind::Float).to_device(Device::Cpu)).context("reading losses")
}

/// Figures of one batch, by place in the flattened batch.
#[derive(Default)]
struct Read {
    losses: BTreeMap<(i64, u32), f32>,
    best: BTreeMap<i64, u32>,
}

/// One candidate.
#[derive(Debug, Clone, Default)]
struct Scored {
    loss: f32,
    greedy: Vec<u32>,
    exact: bool,
}

impl Scored {
    fn of(targets: &[rows::Target], b: usize, layout: &Layout, read: &Read) -> Self {
        let at = |t: &rows::Target| layout.flat(b, t.place);
        let losses = targets.iter().map(|t| f64::from(read.losses[&(at(t), t.token)]));
        let greedy: Vec<u32> = targets.iter().map(|t| read.best[&at(t)]).collect();
        Self {
            loss: (losses.sum::<f64>() / targets.len() as f64) as f32,
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

/// Shape of a batch: every row is its prefix, padded to `prefix`, then its branches, padded to `branch`.
struct Layout {
    prefix: usize,
    branch: usize,
}

impl Layout {
    fn of(rows: &[Row]) -> Self {
        Self {
            prefix: rows.iter().map(|r| r.prefix.len()).max().unwrap_or(0),
            branch: rows.iter().map(Row::branch_tokens).max().unwrap_or(0),
        }
    }

    fn width(&self) -> usize {
        self.prefix + self.branch
    }

    /// Index in the flattened batch.
    fn flat(&self, row: usize, place: Place) -> i64 {
        let column = match place {
            Place::Prefix(at) => at,
            Place::Branch(at) => self.prefix + at,
        };
        (row * self.width() + column) as i64
    }

    /// [B, width] token ids; padding is 0, which nothing real can see.
    fn tokens(&self, rows: &[Row], device: Device) -> anyhow::Result<Tensor> {
        let mut ids = vec![0i64; rows.len() * self.width()];
        for (row, ids) in rows.iter().zip(ids.chunks_mut(self.width())) {
            let copy = |to: &mut [i64], from: &[u32]| to.iter_mut().zip(from).for_each(|(a, &b)| *a = i64::from(b));
            copy(ids, &row.prefix);
            copy(&mut ids[self.prefix..], &row.branches.concat());
        }
        Ok(Tensor::f_from_slice(&ids)?.f_reshape([rows.len() as i64, self.width() as i64])?.f_to_device(device)?)
    }

    /// Number of positions that the batch uses.
    fn positions(&self, rows: &[Row]) -> i64 {
        let longest = |r: &Row| r.prefix.len() + r.branches.iter().map(Vec::len).max().unwrap_or(0);
        rows.iter().map(longest).max().unwrap_or(0).max(self.prefix) as i64
    }

    /// Rotary tables and mask: a branch goes on where its row's prefix ends, and sees that prefix and itself.
    fn tables(&self, rows: &[Row], plain: &RopeTables, device: Device, kind: Kind) -> anyhow::Result<RopeTables> {
        let (width, branch) = (self.width(), self.branch);
        let mut positions: Vec<i64> = Vec::with_capacity(rows.len() * width);
        let mut mask = vec![f32::NEG_INFINITY; rows.len() * branch * width];
        for (row, mask) in rows.iter().zip(mask.chunks_mut(branch * width)) {
            positions.extend(0..self.prefix as i64);
            let mut start = 0;
            for part in &row.branches {
                positions.extend((0..part.len()).map(|i| (row.prefix.len() + i) as i64));
                for i in 0..part.len() {
                    let seen = &mut mask[(start + i) * width..][..width];
                    seen[..row.prefix.len()].fill(0.0);
                    seen[self.prefix + start..=self.prefix + start + i].fill(0.0);
                }
                start += part.len();
            }
            // Padding sees one token, because a softmax over nothing is not a number.
            for i in start..branch {
                positions.push(0);
                mask[i * width] = 0.0;
            }
        }
        let batch = rows.len() as i64;
        let positions = Tensor::f_from_slice(&positions)?.f_reshape([batch, width as i64])?.f_to_device(device)?;
        let mask = Tensor::f_from_slice(&mask)?.f_reshape([batch, 1, branch as i64, width as i64])?;
        let mask = mask.f_to_device(device)?.f_to_kind(kind)?;
        Ok(plain.branched(&positions, Branches { prefix: self.prefix as i64, mask }))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{
        super::{prompt, read, tasks::find},
        *,
    };
    use crate::{eval::prompt::Prompter, text::tokenizer::Tokenizer};
    use std::path::PathBuf;

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

    /// The golden file scores each candidate alone with transformers; here they share prefixes and batches.
    #[test]
    fn answers_are_those_of_transformers() {
        for batch_tokens in [1, 5_000] {
            let scorer = scorer(batch_tokens, Precision::F32);
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
                        assert!((a - b).abs() < 2e-5, "{label} {i}: {a} {b}");
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
