//! What each step computes: who is admitted, which tokens go in, what becomes of the logits. Runs on the thread that owns
//! the device; ends when the last handle is dropped. Knows nothing of how a step is computed.

use super::{
    Completion, RequestError, Shared,
    backend::{Backend, Batch, Rest, Segment},
    cpu::isa::Isa,
    pages::{PAGE, Pages, Prefixes, pages_for},
    sampling::{NotANumber, Sampler},
    sequence::{Message, Role, Sequence, Waiting},
};
use rayon::prelude::*;
use std::{
    cell::RefCell,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering, mpsc},
};

/// The device thread: serves requests until every handle is gone. A panic or a device failure ends it and is told to all.
pub fn run(
    backend: Box<dyn Backend>,
    slots: usize,
    pool: Arc<rayon::ThreadPool>,
    messages: mpsc::Receiver<Message>,
    shared: &Shared,
) {
    let pages = Pages::new(backend.pages());
    let mut scheduler = Scheduler {
        backend,
        slots,
        pool,
        pages,
        prefixes: Prefixes::default(),
        inbox: VecDeque::new(),
        waiting: VecDeque::new(),
        running: Vec::new(),
        unloaded: false,
        shared,
    };
    let ended = catch_unwind(AssertUnwindSafe(|| scheduler.serve(&messages)));
    let reason = match ended {
        Ok(Ok(())) => "all its handles were dropped".to_owned(),
        Ok(Err(error)) => format!("{error:#}"),
        Err(panic) => format!("internal error: {}", message(&*panic)),
    };
    // Set before the queues are dropped: whoever waits finds the reason.
    *shared.stopped.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(reason);
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic without a message")
}

struct Scheduler<'a> {
    backend: Box<dyn Backend>,
    slots: usize,
    pool: Arc<rayon::ThreadPool>,
    pages: Pages,
    prefixes: Prefixes,
    /// Messages behind new parameters, or behind a rest, that wait for the running sequences to end.
    inbox: VecDeque<Message>,
    waiting: VecDeque<Waiting>,
    running: Vec<Sequence>,
    /// The weights were given back: nothing can be computed.
    unloaded: bool,
    shared: &'a Shared,
}

impl Scheduler<'_> {
    fn serve(&mut self, messages: &mpsc::Receiver<Message>) -> anyhow::Result<()> {
        loop {
            if self.idle() && self.inbox.is_empty() {
                self.publish();
                match messages.recv() {
                    Ok(message) => self.inbox.push_back(message),
                    Err(mpsc::RecvError) => return Ok(()),
                }
            }
            self.inbox.extend(messages.try_iter());
            self.receive()?;
            self.drop_cancelled();
            self.admit()?;
            self.publish();
            if !self.running.is_empty() {
                self.step()?;
            }
        }
    }

    fn idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Takes messages in order; new parameters and rests wait until everything before them is answered.
    fn receive(&mut self) -> anyhow::Result<()> {
        while let Some(message) = self.inbox.pop_front() {
            match message {
                Message::Request(request) if self.unloaded => {
                    let _ = request.reply.send(Err(RequestError::Unloaded));
                }
                Message::Request(request) => self.waiting.push_back(request),
                Message::Weights(weights, done) if self.idle() => {
                    self.prefixes.clear(&mut self.pages);
                    self.backend.set_weights(weights)?;
                    self.unloaded = false;
                    // Nobody listening any more changes nothing.
                    let _ = done.send(Ok(()));
                }
                Message::Rest(rest, done) if self.idle() => {
                    self.prefixes.clear(&mut self.pages);
                    self.backend.rest(rest);
                    self.unloaded |= rest == Rest::Weights;
                    let _ = done.send(());
                }
                blocked @ (Message::Weights(..) | Message::Rest(..)) => {
                    self.inbox.push_front(blocked);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn publish(&self) {
        let requests = self.running.iter().filter(|s| matches!(s.role, Role::Request { .. })).count();
        self.shared.counters.running.store(requests, Ordering::Relaxed);
        self.shared.counters.waiting.store(self.waiting.len(), Ordering::Relaxed);
    }

    fn drop_cancelled(&mut self) {
        self.waiting.retain(|w| !w.reply.is_closed());
        for index in (0..self.running.len()).rev() {
            if self.running[index].cancelled() {
                let sequence = self.running.swap_remove(index);
                self.release(&sequence);
            }
        }
    }

    /// Gives a sequence's pages back.
    fn release(&mut self, sequence: &Sequence) {
        self.pages.give(sequence.pages[sequence.shared..].iter().copied());
        if let Role::Request { prefix: Some(prefix), .. } = &sequence.role {
            let entry = self.prefixes.get_mut(prefix).expect("a prefix in use is never evicted");
            entry.users -= 1;
        }
    }

    /// Fills slots in order of arrival. A request takes the pages of its whole length at once, so it can always finish.
    fn admit(&mut self) -> anyhow::Result<()> {
        while self.running.len() < self.slots {
            let Some(next) = self.waiting.front() else { return Ok(()) };
            let prefix = next.request.prefix.clone();
            // Without a rest there would be no row left to take logits from.
            let admitted = if prefix.is_empty() || next.request.prompt.is_empty() {
                self.admit_plain()
            } else {
                self.admit_with_prefix(&prefix)?
            };
            if !admitted {
                // Nobody is running who could free pages: the prefixes give way.
                if !self.running.is_empty() || !self.admit_plain() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn admit_plain(&mut self) -> bool {
        let Some(next) = self.waiting.front() else { return false };
        let length = next.request.prefix.len() + next.request.prompt.len() + next.request.max_new_tokens;
        let wanted = pages_for(length);
        self.prefixes.evict(&mut self.pages, wanted, None);
        let Some(pages) = self.pages.take(wanted) else { return false };
        let waiting = self.waiting.pop_front().expect("looked at above");
        self.running.push(Sequence::new(waiting, pages, 0, 0, None));
        true
    }

    /// Shares the prefix's full pages and copies the part of a page behind them; starts computing the prefix if it is new.
    fn admit_with_prefix(&mut self, prefix: &Arc<[u32]>) -> anyhow::Result<bool> {
        let Some(next) = self.waiting.front() else { return Ok(false) };
        let full = prefix.len() / PAGE;
        let own = pages_for(prefix.len() + next.request.prompt.len() + next.request.max_new_tokens) - full;
        if self.prefixes.get_mut(prefix).is_none() {
            let wanted = pages_for(prefix.len());
            self.prefixes.evict(&mut self.pages, wanted, None);
            let Some(pages) = self.pages.take(wanted) else { return Ok(false) };
            self.prefixes.insert(prefix.clone(), pages.clone());
            self.running.push(Sequence::prefix(prefix.clone(), pages));
        }
        self.prefixes.evict(&mut self.pages, own, Some(prefix));
        let entry = self.prefixes.get_mut(prefix).expect("found or inserted above");
        if !entry.ready {
            return Ok(false);
        }
        let Some(own) = self.pages.take(own) else { return Ok(false) };
        entry.users += 1;
        if prefix.len() > full * PAGE {
            self.backend.copy_page(entry.pages[full], own[0])?;
        }
        let pages = entry.pages[..full].iter().copied().chain(own).collect();
        let waiting = self.waiting.pop_front().expect("looked at above");
        self.running.push(Sequence::new(waiting, pages, full, prefix.len(), Some(prefix.clone())));
        Ok(true)
    }

    fn step(&mut self) -> anyhow::Result<()> {
        let (batch, owners) = self.assemble();
        let mut sampled: Vec<(usize, Result<u32, NotANumber>)> = Vec::with_capacity(owners.len());
        let output = self.backend.step(&batch)?;
        let vocab = self.shared.config.vocab_size;
        let mut on_device = output.drawn.into_iter();
        let mut rows = output.logits.data.chunks(output.logits.stride);
        let mut wanted: Vec<(usize, &mut Sequence, &[f32])> = Vec::new();
        let mut owners = owners.iter().zip(&batch.draws).peekable();
        for (index, sequence) in self.running.iter_mut().enumerate() {
            match owners.next_if(|(owner, _)| **owner == index) {
                Some((_, Some(_))) => {
                    let drawn = on_device.next().expect("one for each draw that was asked for");
                    sampled.push((index, drawn.ok_or(NotANumber)));
                }
                Some((_, None)) => {
                    let row = rows.next().expect("one for each output that was not drawn");
                    wanted.push((index, sequence, &row[..vocab]));
                }
                None => {}
            }
        }
        let by_host: Vec<_> =
            self.pool.install(|| wanted.into_par_iter().map(|(i, s, row)| (i, draw(s, row))).collect());
        sampled.extend(by_host);
        sampled.sort_unstable_by_key(|(index, _)| *index);
        for (segment, sequence) in batch.segments.iter().zip(&mut self.running) {
            sequence.cached += segment.rows;
        }
        self.settle(sampled);
        Ok(())
    }

    /// The step's rows: every sequence that only lacks its last token, and prompts as far as the step has room. Also the
    /// running index that each output row belongs to. Segments stand in the order of `running`.
    fn assemble(&mut self) -> (Batch, Vec<usize>) {
        let mut batch = Batch::default();
        let mut owners = Vec::new();
        let decoding = self.running.iter().filter(|s| s.pending() == 1).count();
        let mut room = self.backend.limits().rows - decoding;
        let mut prompt_tokens = 0;
        let on_device = self.backend.draws();
        for (index, sequence) in self.running.iter_mut().enumerate() {
            let pending = sequence.pending();
            let rows = if pending == 1 { 1 } else { pending.min(room) };
            if pending != 1 {
                room -= rows;
            }
            if sequence.cached < sequence.prompt {
                prompt_tokens += rows as u64;
            }
            let first = batch.tokens.len();
            batch.tokens.extend(&sequence.tokens[sequence.cached..sequence.cached + rows]);
            if rows == pending && matches!(sequence.role, Role::Request { .. }) {
                batch.outputs.push(first + rows - 1);
                batch.draws.push(if on_device { sequence.device_draw() } else { None });
                owners.push(index);
            }
            batch.segments.push(Segment { first, rows, start: sequence.cached, pages: sequence.pages.clone() });
        }
        self.shared.counters.prompt_tokens.fetch_add(prompt_tokens, Ordering::Relaxed);
        (batch, owners)
    }

    /// Appends what was drawn, answers what has ended, frees its slots.
    fn settle(&mut self, sampled: Vec<(usize, Result<u32, NotANumber>)>) {
        let mut leaving = Vec::new();
        self.shared.counters.output_tokens.fetch_add(sampled.len() as u64, Ordering::Relaxed);
        for (index, drawn) in sampled {
            let sequence = &mut self.running[index];
            match drawn {
                Ok(token) => {
                    if let Some(finish) = sequence.accept(token) {
                        let tokens = sequence.tokens[sequence.prompt..].to_vec();
                        let chances = sequence.take_chances();
                        leaving.push((index, Ok(Completion { tokens, finish, chances })));
                    }
                }
                Err(NotANumber) => leaving.push((index, Err(RequestError::NotANumber(sequence.generated())))),
            }
        }
        // From the back, so that removing keeps the indices in front.
        for (index, result) in leaving.into_iter().rev() {
            let sequence = self.running.remove(index);
            self.release(&sequence);
            if let Role::Request { reply, .. } = sequence.role {
                if result.is_ok() {
                    self.shared.counters.completed.fetch_add(1, Ordering::Relaxed);
                }
                // Nobody listening any more is a cancellation, not a fault.
                let _ = reply.send(result);
            }
        }
        let prefixes = &mut self.prefixes;
        self.running.retain(|sequence| match &sequence.role {
            Role::Prefix(tokens) if sequence.pending() == 0 => {
                prefixes.get_mut(tokens).expect("entered when its computation began").ready = true;
                false
            }
            _ => true,
        });
    }
}

/// Draws with the request's own stream, from all tokens or from those that its format allows.
fn draw(sequence: &mut Sequence, logits: &[f32]) -> Result<u32, NotANumber> {
    thread_local!(static SAMPLER: RefCell<Sampler> = RefCell::default());
    sequence.weigh(logits);
    let allowed: Option<(Vec<u32>, f32)> = sequence.allowed().map(|(ids, lean)| (ids.to_vec(), lean));
    let Role::Request { request, rng, .. } = &mut sequence.role else { return Err(NotANumber) };
    let mut pick = |row: &[f32]| {
        SAMPLER.with_borrow_mut(|sampler| sampler.draw(Isa::detect().vector, row, &request.sampling, rng))
    };
    let Some((allowed, lean)) = allowed else { return pick(logits) };
    let mut row: Vec<f32> = allowed.iter().map(|&id| logits[id as usize]).collect();
    if let Some(last) = row.last_mut() {
        *last += lean;
    }
    pick(&row).map(|at| allowed[at as usize])
}
