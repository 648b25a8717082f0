//! The encoder's thread: takes what waits, computes each different text once, answers. Ends when the last handle is dropped; a panic or
//! a device failure ends it and is told to all.

use super::{EncodeError, EncoderOptions, Matches, Model, Shared, Tokens, Vectors, matching, window::windows};
use crate::engine::cpu::{isa::Isa, rows};
use rayon::prelude::*;
use std::{
    collections::HashMap,
    ops::Range,
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

/// Tokens whose vectors are held at the same time, unless one pair has more.
const HELD: usize = 1 << 16;

/// Serves jobs until every handle is gone.
pub fn run(
    model: Box<dyn Model>,
    options: &EncoderOptions,
    pool: &rayon::ThreadPool,
    jobs: &mpsc::Receiver<Job>,
    shared: &Shared,
) {
    let mut worker = Worker { model, options, pool, shared, isa: Isa::detect() };
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
            while tokens < HELD {
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
        for round in rounds(jobs) {
            let texts: Vec<&Tokens> = round.texts.iter().collect();
            let vectors = self.encode(&texts)?;
            let around = (self.options.before.len(), self.options.after.len());
            let isa = self.isa;
            let made: Vec<_> = self.pool.install(|| {
                let one = |&(_, _, a, b): &(usize, usize, usize, usize)| {
                    let (a, b) =
                        (vectors[a].as_ref().map_err(Clone::clone)?, vectors[b].as_ref().map_err(Clone::clone)?);
                    let (first, second) = matching::best(isa, a, b);
                    let inside = |best: Vec<f32>| best[around.0..best.len() - around.1].to_vec();
                    Ok(Matches { first: inside(first), second: inside(second) })
                };
                round.pairs.par_iter().with_max_len(1).map(one).collect()
            });
            for ((job, number, ..), result) in round.pairs.into_iter().zip(made) {
                answers[job][number] = result;
            }
        }
        for (answer, reply) in answers.into_iter().zip(replies) {
            // Whoever asked may have gone.
            let _ = reply.send(answer);
        }
        Ok(())
    }

    /// Vectors of different texts.
    fn encode(&mut self, texts: &[&Tokens]) -> anyhow::Result<Vec<Result<Vectors, EncodeError>>> {
        let (before, after) = (self.options.before.len(), self.options.after.len());
        let vocab = self.shared.info.vocab;
        let mut done: Vec<Result<Vectors, EncodeError>> = Vec::with_capacity(texts.len());
        let mut pieces = Vec::new();
        for (text, tokens) in texts.iter().enumerate() {
            if let Some(&id) = tokens.iter().find(|&&id| id as usize >= vocab) {
                done.push(Err(EncodeError::TokenOutOfRange { id, vocab }));
                continue;
            }
            done.push(Ok(Vectors::default()));
            for window in windows(tokens.len(), self.options.window - before - after) {
                let first = if window.keeps.start == 0 { 0 } else { before + window.keeps.start - window.sees.start };
                let behind = if window.keeps.end == tokens.len() { after } else { 0 };
                let keeps = first..before + window.keeps.end - window.sees.start + behind;
                let inside = tokens[window.sees].iter();
                let ids = self.options.before.iter().chain(inside).chain(&self.options.after).copied().collect();
                pieces.push(Piece { text, ids, keeps });
            }
        }
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

/// One window of a text with the tokens around it, and which of its rows count.
struct Piece {
    text: usize,
    ids: Vec<u32>,
    keeps: Range<usize>,
}

/// Cuts the pairs of all jobs into rounds of about [`HELD`] tokens; equal texts of a round are one.
fn rounds(jobs: &[Vec<(Tokens, Tokens)>]) -> Vec<Round> {
    let mut rounds = vec![Round::default()];
    let mut numbers: HashMap<Tokens, usize> = HashMap::new();
    let mut held = 0;
    for (job, pairs) in jobs.iter().enumerate() {
        for (number, (a, b)) in pairs.iter().enumerate() {
            if held > 0 && held + a.len() + b.len() > HELD {
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
        let found = rounds(&jobs);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].texts.iter().map(|t| t.len()).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(found[0].pairs, [(0, 0, 0, 1), (0, 1, 1, 0), (1, 0, 2, 0)]);
        let long = vec![vec![(text(HELD), text(HELD)), (text(1), text(2))]];
        assert_eq!(rounds(&long).iter().map(|r| r.pairs.len()).collect::<Vec<_>>(), [1, 1]);
    }
}
