//! Who owns which page of the KV cache, and the shared prefixes. Bookkeeping only: never touches the cache itself.

use std::{collections::HashMap, sync::Arc};

/// Positions of one page.
pub const PAGE: usize = 64;

/// Pages that `tokens` positions need.
pub fn pages_for(tokens: usize) -> usize {
    tokens.div_ceil(PAGE)
}

/// The free pages. The last one given back is the next handed out: it is the likeliest to be in the processor's caches.
pub struct Pages {
    free: Vec<u32>,
    total: usize,
}

impl Pages {
    /// All free.
    pub fn new(total: usize) -> Self {
        Self { free: (0..total as u32).rev().collect(), total }
    }
    /// How many are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }
    /// `n` pages, or none at all.
    pub fn take(&mut self, n: usize) -> Option<Vec<u32>> {
        let rest = self.free.len().checked_sub(n)?;
        Some(self.free.split_off(rest))
    }
    /// Gives pages back.
    pub fn give(&mut self, pages: impl IntoIterator<Item = u32>) {
        self.free.extend(pages);
        debug_assert!(self.free.len() <= self.total, "a page was given back twice");
    }
}

/// One shared prefix in the cache.
pub struct Prefix {
    /// Its pages; the last may be partly filled.
    pub pages: Vec<u32>,
    /// Whether its keys and values have been computed.
    pub ready: bool,
    /// Sequences that read its full pages now.
    pub users: usize,
    /// For eviction: the tick of the last use.
    pub used: u64,
}

/// The prefixes in the cache, by content.
#[derive(Default)]
pub struct Prefixes {
    entries: HashMap<Arc<[u32]>, Prefix>,
    tick: u64,
}

impl Prefixes {
    /// The entry of that content.
    pub fn get_mut(&mut self, tokens: &[u32]) -> Option<&mut Prefix> {
        self.tick += 1;
        let entry = self.entries.get_mut(tokens)?;
        entry.used = self.tick;
        Some(entry)
    }
    /// Adds an entry that is still to be computed.
    pub fn insert(&mut self, tokens: Arc<[u32]>, pages: Vec<u32>) {
        self.tick += 1;
        self.entries.insert(tokens, Prefix { pages, ready: false, users: 0, used: self.tick });
    }
    /// Forgets an entry whose computation failed; returns its pages.
    pub fn remove(&mut self, tokens: &[u32]) -> Vec<u32> {
        self.entries.remove(tokens).map(|p| p.pages).unwrap_or_default()
    }
    /// Forgets all entries and gives their pages back; none may be in use.
    pub fn clear(&mut self, pages: &mut Pages) {
        for (_, prefix) in self.entries.drain() {
            debug_assert!(prefix.users == 0, "a prefix in use was dropped");
            pages.give(prefix.pages);
        }
    }
    /// Frees idle entries, least recently used first, until `wanted` pages are free or none is idle. `keep` stays.
    pub fn evict(&mut self, pages: &mut Pages, wanted: usize, keep: Option<&[u32]>) {
        while pages.free() < wanted {
            let idle = self.entries.iter().filter(|(k, p)| p.ready && p.users == 0 && Some(&***k) != keep);
            let Some(oldest) = idle.min_by_key(|(_, p)| p.used).map(|(k, _)| k.clone()) else { return };
            pages.give(self.remove(&oldest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_all_or_nothing() {
        let mut pages = Pages::new(3);
        assert!(pages.take(4).is_none());
        assert_eq!(pages.free(), 3);
        let two = pages.take(2).expect("two of three");
        assert_eq!(pages.free(), 1);
        pages.give(two);
        assert_eq!(pages.free(), 3);
    }

    #[test]
    fn evicts_idle_prefixes_oldest_first_and_never_used_ones() {
        let mut pages = Pages::new(3);
        let mut prefixes = Prefixes::default();
        for name in 0..3u32 {
            let taken = pages.take(1).expect("free");
            prefixes.insert(Arc::from([name]), taken);
            prefixes.get_mut(&[name]).expect("just inserted").ready = true;
        }
        prefixes.get_mut(&[0]).expect("there").users = 1;
        prefixes.get_mut(&[1]).expect("there");
        prefixes.evict(&mut pages, 1, None);
        assert!(prefixes.get_mut(&[2]).is_none(), "the least recently used idle one went");
        prefixes.evict(&mut pages, 3, None);
        assert_eq!(pages.free(), 2, "the one in use stays");
        assert!(prefixes.get_mut(&[0]).is_some());
    }
}
