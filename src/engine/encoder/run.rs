//! The encoder's thread: takes what waits, computes each different text once, answers. Ends when the last handle is dropped; a panic or
//! a device failure ends it and is told to all.

use super::{
    Best, EncodeError, EncoderOptions, Matches, Model, Piece, Shared, Tokens, Vectors, matching, window::windows,
};
use crate::engine::cpu::{isa::Isa, rows};
use rayon::prelude::*;
use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{PoisonError, atomic::Ordering, mpsc},
};
use tokio::sync::oneshot;

type Reply<T> = oneshot::Sender<Vec<Result<T, EncodeError>>>;

/// A request.
pub enum Job {
    /// Best matches of pairs.
    Matches { pairs: Vec<(Tokens, Tokens)>, reply: Reply<Matches> },
    /// Vectors of texts.
    Vectors { texts: Vec<Tokens>, reply: Reply<Vectors> },
}

impl Job {
    fn cancelled(&self) -> bool {
        match self {
            Self::Matches { reply, .. } => reply.is_closed(),
            Self::Vectors { reply, .. } => reply.is_closed(),
        }
    }
    fn tokens(&self) -> usize {
        match self {
            Self::Matches { pairs, .. } => pairs.iter().map(|(a, b)| a.len() + b.len()).sum(),
            Self::Vectors { texts, .. } => texts.iter().map(|text| text.len()).sum(),
        }
    }
}

/// Tokens whose vectors are held at the same time, unless one pair has more or the model says otherwise.
const HELD: usize = 1 << 16;

/// Serves jobs until every handle is gone.
pub fn run(
    mut model: Box<dyn Model>,
    options: &EncoderOptions,
    pool: &rayon::ThreadPool,
    jobs: &mpsc::Receiver<Job>,
    shared: &Shared,
) {
    let held = model.resident().and_then(|model| model.held()).unwrap_or(HELD);
    let mut worker = Worker { model, options, pool, shared, isa: Isa::detect(), held };
    let ended = catch_unwind(AssertUnwindSafe(|| worker.serve(jobs)));
    let reason = match ended {
        Ok(Ok(())) => "all its handles were dropped".to_owned(),
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            format!("internal error: {}", text.as_deref().unwrap_or("panic without a message"))
        }
    };
    *shared.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
}

struct Worker<'a> {
    model: Box<dyn Model>,
    options: &'a EncoderOptions,
    pool: &'a rayon::ThreadPool,
    shared: &'a Shared,
    isa: Isa,
    /// Tokens of a round.
    held: usize,
}

/// Some of the pairs of all jobs, and the different texts in them.
#[derive(Default)]
struct Round {
    texts: Vec<Tokens>,
    /// (job, number in the job, first text, second text)
    pairs: Vec<(usize, usize, usize, usize)>,
}

impl Worker<'_> {
    fn serve(&mut self, jobs: &mpsc::Receiver<Job>) -> anyhow::Result<()> {
        while let Ok(job) = jobs.recv() {
            let mut tokens = job.tokens();
            let mut taken = vec![job];
            while tokens < self.held {
                let Ok(job) = jobs.try_recv() else { break };
                tokens += job.tokens();
                taken.push(job);
            }
            taken.retain(|job| !job.cancelled());
            let (mut pairs, mut replies) = (Vec::new(), Vec::new());
            for job in taken {
                match job {
                    Job::Matches { pairs: these, reply } => {
                        pairs.push(these);
                        replies.push(reply);
                    }
                    Job::Vectors { texts, reply } => {
                        let texts: Vec<&Tokens> = texts.iter().collect();
                        // Whoever asked may have gone.
                        let _ = reply.send(self.encode(&texts)?);
                    }
                }
            }
            self.answer(&pairs, replies)?;
        }
        Ok(())
    }

    fn answer(&mut self, jobs: &[Vec<(Tokens, Tokens)>], replies: Vec<Reply<Matches>>) -> anyhow::Result<()> {
        let empty = |job: &Vec<_>| vec![Ok(Matches::default()); job.len()];
        let mut answers: Vec<Vec<Result<Matches, EncodeError>>> = jobs.iter().map(empty).collect();
        let around = (self.options.before.len(), self.options.after.len());
        let inside = |best: Vec<f32>| best[around.0..best.len() - around.1].to_vec();
        for round in rounds(jobs, self.held) {
            let made = match self.model.resident() {
                Some(_) => self.on_the_device(&round)?,
                None => self.here(&round)?,
            };
            for ((job, number, ..), result) in round.pairs.into_iter().zip(made) {
                let matches = |(first, second)| Matches { first: inside(first), second: inside(second) };
                answers[job][number] = result.map(matches);
            }
        }
        for (answer, reply) in answers.into_iter().zip(replies) {
            // Whoever asked may have gone.
            let _ = reply.send(answer);
        }
        Ok(())
    }

    fn here(&mut self, round: &Round) -> anyhow::Result<Vec<Result<Best, EncodeError>>> {
        let texts: Vec<&Tokens> = round.texts.iter().collect();
        let vectors = self.encode(&texts)?;
        let isa = self.isa;
        let one = |&(_, _, a, b): &(usize, usize, usize, usize)| {
            let (a, b) = (vectors[a].as_ref().map_err(Clone::clone)?, vectors[b].as_ref().map_err(Clone::clone)?);
            Ok(matching::best(isa, a, b))
        };
        Ok(self.pool.install(|| round.pairs.par_iter().with_max_len(1).map(one).collect()))
    }

    fn on_the_device(&mut self, round: &Round) -> anyhow::Result<Vec<Result<Best, EncodeError>>> {
        let texts: Vec<&Tokens> = round.texts.iter().collect();
        let (pieces, faults) = self.pieces(&texts);
        let fault = |&(_, _, a, b): &(usize, usize, usize, usize)| faults[a].clone().or_else(|| faults[b].clone());
        let asked = round.pairs.iter().filter(|pair| fault(pair).is_none()).map(|&(_, _, a, b)| (a, b));
        let asked: Vec<(usize, usize)> = asked.collect();
        let Some(model) = self.model.resident() else { anyhow::bail!("the model's vectors are on the CPU") };
        let mut found = model.matches(&pieces, texts.len(), &asked)?.into_iter();
        let computed: usize = pieces.iter().map(|piece| piece.ids.len()).sum();
        self.shared.tokens.fetch_add(computed as u64, Ordering::Relaxed);
        let answer = |pair| match fault(pair) {
            Some(fault) => Err(fault),
            None => found.next().flatten().ok_or(EncodeError::NotANumber),
        };
        Ok(round.pairs.iter().map(answer).collect())
    }

    /// The windows of texts, and what is wrong with a text, which then has none.
    fn pieces(&self, texts: &[&Tokens]) -> (Vec<Piece>, Vec<Option<EncodeError>>) {
        let (before, after) = (self.options.before.len(), self.options.after.len());
        let vocab = self.shared.info.vocab;
        let (mut pieces, mut faults) = (Vec::new(), Vec::with_capacity(texts.len()));
        for (text, tokens) in texts.iter().enumerate() {
            let outside = tokens.iter().find(|&&id| id as usize >= vocab);
            faults.push(outside.map(|&id| EncodeError::TokenOutOfRange { id, vocab }));
            if outside.is_some() {
                continue;
            }
            for window in windows(tokens.len(), self.options.window - before - after) {
                let first = if window.keeps.start == 0 { 0 } else { before + window.keeps.start - window.sees.start };
                let behind = if window.keeps.end == tokens.len() { after } else { 0 };
                let keeps = first..before + window.keeps.end - window.sees.start + behind;
                let inside = tokens[window.sees].iter();
                let ids = self.options.before.iter().chain(inside).chain(&self.options.after).copied().collect();
                pieces.push(Piece { text, ids, keeps });
            }
        }
        (pieces, faults)
    }

    /// Vectors of different texts.
    fn encode(&mut self, texts: &[&Tokens]) -> anyhow::Result<Vec<Result<Vectors, EncodeError>>> {
        let (pieces, faults) = self.pieces(texts);
        let mut done: Vec<Result<Vectors, EncodeError>> =
            faults.into_iter().map(|fault| fault.map_or_else(|| Ok(Vectors::default()), Err)).collect();
        let mut rest = pieces.as_slice();
        while !rest.is_empty() {
            let mut rows = 0;
            let fits = rest.iter().take_while(|piece| {
                rows += piece.ids.len();
                rows <= self.options.rows
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            self.pass(now, &mut done)?;
            rest = later;
        }
        Ok(done)
    }

    /// One pass of the model; appends the vectors that count to their texts.
    fn pass(&mut self, pieces: &[Piece], done: &mut [Result<Vectors, EncodeError>]) -> anyhow::Result<()> {
        let sequences: Vec<&[u32]> = pieces.iter().map(|piece| piece.ids.as_slice()).collect();
        let hidden = self.shared.info.hidden;
        let states = self.model.states(&sequences)?;
        let stride = states.stride;
        let mut first = 0;
        for piece in pieces {
            let range = first + piece.keeps.start..first + piece.keeps.end;
            first += piece.ids.len();
            let Ok(vectors) = &mut done[piece.text] else { continue };
            vectors.width = stride;
            let start = vectors.data.len();
            vectors.data.resize(start + range.len() * stride, 0.0);
            let mut whole = true;
            for (row, out) in range.zip(vectors.data[start..].chunks_exact_mut(stride)) {
                let x = states.data[row * stride..][..stride].as_ptr();
                // SAFETY: rows of `stride` floats, which is `hidden` padded to a multiple of 32.
                let size = unsafe { rows::unit(self.isa.vector, x, out.as_mut_ptr(), hidden) };
                vectors.lengths.push(size);
                whole &= size.is_finite() && size > 0.0;
            }
            if !whole {
                done[piece.text] = Err(EncodeError::NotANumber);
            }
        }
        self.shared.tokens.fetch_add(first as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Cuts the pairs of all jobs into rounds of about `most` tokens; equal texts of a round are one.
fn rounds(jobs: &[Vec<(Tokens, Tokens)>], most: usize) -> Vec<Round> {
    let mut rounds = vec![Round::default()];
    let mut numbers: HashMap<Tokens, usize> = HashMap::new();
    let mut held = 0;
    for (job, pairs) in jobs.iter().enumerate() {
        for (number, (a, b)) in pairs.iter().enumerate() {
            if held > 0 && held + a.len() + b.len() > most {
                rounds.push(Round::default());
                numbers.clear();
                held = 0;
            }
            let Some(round) = rounds.last_mut() else { continue };
            let mut place = |text: &Tokens| {
                if let Some(&known) = numbers.get(text) {
                    return known;
                }
                held += text.len();
                round.texts.push(text.clone());
                numbers.insert(text.clone(), round.texts.len() - 1);
                round.texts.len() - 1
            };
            let pair = (job, number, place(a), place(b));
            round.pairs.push(pair);
        }
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_of_a_round_are_one() {
        let text = |n: usize| -> Tokens { vec![7; n].into() };
        let jobs = vec![vec![(text(3), text(4)), (text(4), text(3))], vec![(text(5), text(3))]];
        let found = rounds(&jobs, HELD);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].texts.iter().map(|t| t.len()).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(found[0].pairs, [(0, 0, 0, 1), (0, 1, 1, 0), (1, 0, 2, 0)]);
        let long = vec![vec![(text(HELD), text(HELD)), (text(1), text(2))]];
        assert_eq!(rounds(&long, HELD).iter().map(|r| r.pairs.len()).collect::<Vec<_>>(), [1, 1]);
    }
}
