//! Answers by arguments: each distinct call of an operator is made once while it is in flight, and for a while after.
//!
//! Shared by all partitions of one operator. Holds answers of finished calls up to [`KEEP_BYTES`], oldest out first; an answer that is gone
//! is computed again, and is the same, because an answer is a function of its arguments.

use arrow::array::ArrayRef;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// Memory of finished answers that are kept.
const KEEP_BYTES: usize = 32 << 20;

/// Hash of a call's arguments.
pub(super) type Key = [u8; 32];

/// One row of a result.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub array: ArrayRef,
    pub row: usize,
    pub error: Option<Arc<str>>,
}

/// Where an answer appears when it is there. Closed without an answer: its maker was cancelled.
pub(super) type Pending = watch::Receiver<Option<Answer>>;

#[derive(Debug, Default)]
pub(super) struct Memo {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    cells: HashMap<Key, Pending>,
    finished: VecDeque<(Key, usize)>,
    bytes: usize,
}

/// What to do for a key.
pub(super) enum Claim {
    /// Nobody computes it: the caller must, and must send the answer.
    Mine(watch::Sender<Option<Answer>>),
    /// It is there or on its way.
    Other(Pending),
}

impl Memo {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who computes this key.
    pub(super) fn claim(&self, key: Key) -> Claim {
        let mut state = self.lock();
        if let Some(pending) = state.cells.get(&key) {
            let abandoned = pending.borrow().is_none() && pending.has_changed().is_err();
            if !abandoned {
                return Claim::Other(pending.clone());
            }
        }
        let (sender, pending) = watch::channel(None);
        state.cells.insert(key, pending);
        Claim::Mine(sender)
    }

    /// Publishes an answer of about `bytes`.
    pub(super) fn finish(&self, key: Key, sender: &watch::Sender<Option<Answer>>, answer: Answer, bytes: usize) {
        sender.send_replace(Some(answer));
        let mut state = self.lock();
        state.finished.push_back((key, bytes));
        state.bytes += bytes;
        while state.bytes > KEEP_BYTES {
            let Some((old, size)) = state.finished.pop_front() else { break };
            state.bytes -= size;
            state.cells.remove(&old);
        }
    }
}
