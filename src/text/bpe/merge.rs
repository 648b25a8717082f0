//! The merges themselves: of all adjacent pairs that may be merged, the one of lowest rank first, from the left among equals, until none is
//! left. Short words by looking at every pair each time, long ones with a heap.

use super::{Merge, NONE};
use std::{cmp::Reverse, collections::BinaryHeap};

/// Symbols up to which the plain way is the faster one.
const PLAIN: usize = 64;

/// Pair → rank and token, probed in line.
#[derive(Debug)]
pub struct Pairs {
    slots: Vec<Slot>,
    mask: usize,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    pair: u64,
    rank: u32,
    token: u32,
}

const FREE: u64 = u64::MAX;

impl Pairs {
    /// Of a pair that is given twice the lowest rank counts.
    pub fn new(merges: &[Merge]) -> Self {
        let size = (merges.len() * 2).next_power_of_two().max(16);
        let mut table = Self { slots: vec![Slot { pair: FREE, rank: NONE, token: NONE }; size], mask: size - 1 };
        for merge in merges {
            let pair = u64::from(merge.left) << 32 | u64::from(merge.right);
            let mut at = table.start(pair);
            while table.slots[at].pair != FREE && table.slots[at].pair != pair {
                at = (at + 1) & table.mask;
            }
            if table.slots[at].pair == FREE || table.slots[at].rank > merge.rank {
                table.slots[at] = Slot { pair, rank: merge.rank, token: merge.token };
            }
        }
        table
    }

    #[inline]
    fn start(&self, pair: u64) -> usize {
        (pair.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize & self.mask
    }

    /// Rank ([`NONE`]: may not be merged) and token.
    #[inline]
    fn get(&self, left: u32, right: u32) -> (u32, u32) {
        let pair = u64::from(left) << 32 | u64::from(right);
        let mut at = self.start(pair);
        loop {
            let slot = &self.slots[at];
            if slot.pair == pair || slot.pair == FREE {
                return (slot.rank, slot.token);
            }
            at = (at + 1) & self.mask;
        }
    }
}

/// Bytes and merges.
#[derive(Debug)]
pub struct Merger {
    /// Token of each byte.
    pub bytes: [u32; 256],
    /// The merges.
    pub pairs: Pairs,
}

/// Memory that is used again.
#[derive(Debug, Default)]
pub struct Scratch {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<(u32, u32, u32)>>,
    links: Vec<(u32, u32)>,
}

/// A token so far, and the rank and result of its merge with the next one.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    token: u32,
    rank: u32,
    merged: u32,
}

impl Merger {
    /// Appends the ids of one word.
    pub fn encode(&self, word: &[u8], scratch: &mut Scratch, out: &mut Vec<u32>) {
        let symbols = &mut scratch.symbols;
        symbols.clear();
        symbols.extend(word.iter().map(|b| Symbol { token: self.bytes[usize::from(*b)], rank: NONE, merged: NONE }));
        for at in 1..symbols.len() {
            self.join(symbols, at - 1, at);
        }
        if symbols.len() <= PLAIN {
            self.plain(symbols);
            out.extend(symbols.iter().map(|s| s.token));
        } else {
            self.with_heap(scratch, out);
        }
    }

    #[inline]
    fn join(&self, symbols: &mut [Symbol], left: usize, right: usize) {
        (symbols[left].rank, symbols[left].merged) = self.pairs.get(symbols[left].token, symbols[right].token);
    }

    fn plain(&self, symbols: &mut Vec<Symbol>) {
        loop {
            let (mut best, mut rank) = (0, NONE);
            for (at, symbol) in symbols.iter().enumerate() {
                if symbol.rank < rank {
                    (best, rank) = (at, symbol.rank);
                }
            }
            if rank == NONE {
                return;
            }
            symbols[best].token = symbols[best].merged;
            symbols.remove(best + 1);
            symbols[best].rank = NONE;
            if best + 1 < symbols.len() {
                self.join(symbols, best, best + 1);
            }
            if best > 0 {
                self.join(symbols, best - 1, best);
            }
        }
    }

    /// Symbols stay where they are, linked to their neighbours; one that was merged into its left neighbour has the token [`NONE`].
    fn with_heap(&self, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { symbols, heap, links } = scratch;
        let count = symbols.len() as u32;
        links.clear();
        links.extend((0..count).map(|at| (at.wrapping_sub(1), at + 1)));
        heap.clear();
        let candidates = symbols.iter().enumerate().filter(|(_, s)| s.rank != NONE);
        heap.extend(candidates.map(|(at, s)| Reverse((s.rank, at as u32, s.merged))));
        while let Some(Reverse((rank, at, merged))) = heap.pop() {
            let left = at as usize;
            if symbols[left].token == NONE || symbols[left].rank != rank || symbols[left].merged != merged {
                continue;
            }
            let right = links[left].1;
            let after = links[right as usize].1;
            symbols[left] = Symbol { token: merged, rank: NONE, merged: NONE };
            symbols[right as usize] = Symbol { token: NONE, rank: NONE, merged: NONE };
            links[left].1 = after;
            if after < count {
                links[after as usize].0 = at;
                self.join(symbols, left, after as usize);
            }
            let before = links[left].0;
            if before != NONE {
                self.join(symbols, before as usize, left);
            }
            for at in [before, at] {
                if at != NONE && symbols[at as usize].rank != NONE {
                    let symbol = symbols[at as usize];
                    heap.push(Reverse((symbol.rank, at, symbol.merged)));
                }
            }
        }
        out.extend(symbols.iter().map(|s| s.token).filter(|token| *token != NONE));
    }
}
