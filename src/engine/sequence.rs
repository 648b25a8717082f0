//! One sequence on its way: tokens, how many of them are in the cache, its pages, its random stream.

use super::{
    Completion, FinishReason, FormatStep, Request, RequestError,
    backend::{Draw, Rest},
};
use crate::models::weights::Weights;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::{Arc, mpsc};
use tokio::sync::oneshot;

/// Where the result goes.
pub type Reply = oneshot::Sender<Result<Completion, RequestError>>;

/// What handles send to the device thread.
pub enum Message {
    /// A sequence to generate.
    Request(Waiting),
    /// New parameters, and where to say that they are in place.
    Weights(Weights, mpsc::Sender<anyhow::Result<()>>),
    /// Memory that is not needed for a while is to go, and where to say that it has.
    Rest(Rest, mpsc::Sender<()>),
}

/// Whether a drawn stop token is part of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopToken {
    /// It is not.
    Dropped,
    /// It is the last token.
    Kept,
}

/// A request that waits.
pub struct Waiting {
    /// What was asked.
    pub request: Request,
    /// What becomes of its stop token.
    pub stop: StopToken,
    /// Who asked.
    pub reply: Reply,
}

/// A sequence in a slot.
pub struct Sequence {
    /// Prompt (prefix first), then what was generated.
    pub tokens: Vec<u32>,
    /// Length of the prompt.
    pub prompt: usize,
    /// Leading tokens whose keys and values are in the cache.
    pub cached: usize,
    /// Its pages in order; the first `shared` belong to the prefix.
    pub pages: Vec<u32>,
    /// See `pages`.
    pub shared: usize,
    /// What it does with its logits.
    pub role: Role,
}

/// What a sequence is for.
pub enum Role {
    /// Answers a request.
    Request {
        /// What was asked.
        request: Request,
        /// What becomes of its stop token.
        stop: StopToken,
        /// Who asked.
        reply: Reply,
        /// The request's own random stream.
        rng: Box<ChaCha8Rng>,
        /// The key of the shared prefix in use, if any.
        prefix: Option<Arc<[u32]>>,
        /// Steps of the request's format that are done.
        steps: usize,
        /// As [`super::Completion::chances`], so far.
        chances: Vec<Box<[f32]>>,
    },
    /// Computes a shared prefix.
    Prefix(Arc<[u32]>),
}

impl Sequence {
    /// A request's sequence; `cached` positions are already in `pages`, of which the first `shared` are the prefix's.
    pub fn new(waiting: Waiting, pages: Vec<u32>, shared: usize, cached: usize, prefix: Option<Arc<[u32]>>) -> Self {
        let Waiting { request, stop, reply } = waiting;
        let tokens: Vec<u32> = request.prefix.iter().chain(&request.prompt).copied().collect();
        let rng = Box::new(ChaCha8Rng::seed_from_u64(request.seed));
        let prompt = tokens.len();
        let role = Role::Request { request, stop, reply, rng, prefix, steps: 0, chances: Vec::new() };
        let mut sequence = Self { tokens, prompt, cached, pages, shared, role };
        sequence.force();
        sequence
    }

    /// The computation of a shared prefix.
    pub fn prefix(tokens: Arc<[u32]>, pages: Vec<u32>) -> Self {
        Self { tokens: tokens.to_vec(), prompt: tokens.len(), cached: 0, pages, shared: 0, role: Role::Prefix(tokens) }
    }

    /// Tokens that are not in the cache yet.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.cached
    }

    /// Generated so far.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Whether nobody waits for it any more.
    pub fn cancelled(&self) -> bool {
        matches!(&self.role, Role::Request { reply, .. } if reply.is_closed())
    }

    /// The only tokens that may come next, where the request's format says so, and what is added to the last one's logit.
    pub fn allowed(&self) -> Option<(&[u32], f32)> {
        let Role::Request { request, steps, .. } = &self.role else { return None };
        request.format.as_ref()?.get(*steps)?.choice()
    }

    /// How a device may draw the next token: from all tokens, with a seed of the request's own stream. None where the format
    /// says what may come.
    pub fn device_draw(&mut self) -> Option<Draw> {
        if self.allowed().is_some() {
            return None;
        }
        let Role::Request { request, rng, .. } = &mut self.role else { return None };
        let sampling = request.sampling;
        Some(Draw { sampling, seed: if sampling.temperature > 0.0 { rng.next_u64() } else { 0 } })
    }

    /// Keeps what a weighed step's logits say, where the next step is one.
    pub fn weigh(&mut self, logits: &[f32]) {
        let Role::Request { request, steps, chances, .. } = &mut self.role else { return };
        let step = request.format.as_ref().and_then(|format| format.get(*steps));
        let Some(FormatStep::Weighed(ids)) = step else { return };
        let row: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
        let high = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = row.iter().map(|x| (x - high).exp()).collect();
        let sum: f32 = weights.iter().sum();
        chances.push(weights.iter().map(|w| w / sum).collect());
    }

    /// What was weighed.
    pub fn take_chances(&mut self) -> Vec<Box<[f32]>> {
        match &mut self.role {
            Role::Request { chances, .. } => std::mem::take(chances),
            Role::Prefix(_) => Vec::new(),
        }
    }

    /// Appends the token that was drawn and what must follow it; says why the sequence ends, if it does. A stop token is only appended
    /// where it was asked for.
    pub fn accept(&mut self, token: u32) -> Option<FinishReason> {
        let generated = self.generated();
        let Role::Request { request, stop, steps, .. } = &mut self.role else { return None };
        if let Some(format) = &request.format {
            let length = format.len();
            self.tokens.push(token);
            *steps += 1;
            return (self.force() == length).then_some(FinishReason::Stop);
        }
        if request.stop.contains(&token) {
            if *stop == StopToken::Kept {
                self.tokens.push(token);
            }
            return Some(FinishReason::Stop);
        }
        let last = generated + 1 >= request.max_new_tokens;
        self.tokens.push(token);
        last.then_some(FinishReason::Length)
    }

    /// Appends the tokens that the format knows beforehand; gives the number of steps that are done.
    fn force(&mut self) -> usize {
        let Role::Request { request: Request { format: Some(format), .. }, steps, .. } = &mut self.role else {
            return 0;
        };
        while let Some(FormatStep::Forced(ids)) = format.get(*steps) {
            self.tokens.extend_from_slice(ids);
            *steps += 1;
        }
        *steps
    }
}
