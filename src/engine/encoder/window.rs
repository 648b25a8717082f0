//! How a text that is longer than the model's window is read: windows that overlap by half, each token taking its vector from the window
//! in which it stands nearer to the middle. A text that fits is one window, as the model was trained.

use std::ops::Range;

/// One window over a text's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The tokens that the model sees.
    pub sees: Range<usize>,
    /// Those whose vectors count.
    pub keeps: Range<usize>,
}

/// The windows of a text of `tokens`, each of `room` tokens at most. Every token is kept once.
pub fn windows(tokens: usize, room: usize) -> Vec<Window> {
    assert!(room > 0, "a window has room for a token");
    if tokens <= room {
        return vec![Window { sees: 0..tokens, keeps: 0..tokens }];
    }
    let step = (room / 2).max(1);
    let mut starts: Vec<usize> = (0..tokens - room).step_by(step).collect();
    starts.push(tokens - room);
    let mut kept = 0;
    let cut = |i: usize| match starts.get(i + 1) {
        // The middle of what both windows see.
        Some(next) => next + (starts[i] + room - next) / 2,
        None => tokens,
    };
    let window = |(i, &start): (usize, &usize)| {
        let keeps = kept..cut(i).max(kept);
        kept = keeps.end;
        Window { sees: start..start + room, keeps }
    };
    starts.iter().enumerate().map(window).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_fits_is_one_window() {
        for tokens in [0, 1, 10] {
            assert_eq!(windows(tokens, 10), [Window { sees: 0..tokens, keeps: 0..tokens }]);
        }
    }

    #[test]
    fn windows_overlap_by_half() {
        let found = windows(22, 8);
        let sees: Vec<_> = found.iter().map(|w| w.sees.clone()).collect();
        assert_eq!(sees, [0..8, 4..12, 8..16, 12..20, 14..22]);
        let keeps: Vec<_> = found.iter().map(|w| w.keeps.clone()).collect();
        assert_eq!(keeps, [0..6, 6..10, 10..14, 14..17, 17..22]);
    }

    #[test]
    fn every_token_is_kept_once_by_a_window_that_sees_it() {
        for room in 1..20 {
            for tokens in 0..100 {
                let mut next = 0;
                for window in windows(tokens, room) {
                    assert_eq!(window.keeps.start, next);
                    assert!(window.sees.len() <= room && window.sees.start <= window.keeps.start);
                    assert!(window.keeps.end <= window.sees.end);
                    next = window.keeps.end;
                }
                assert_eq!(next, tokens, "{tokens} tokens, room for {room}");
            }
        }
    }
}
