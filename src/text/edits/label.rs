//! The choices that turn one text into another: which segments of the dirty text stand in the clean one. Exact where the clean text
//! can be put together from segments of the dirty one; else a segment stays where most of its words do.

use super::{DROP, Edits, GIVEN, KEEP, Segment, tidy};
use std::collections::{HashMap, HashSet};

/// Part of a segment's words that must stand in the clean text where no exact answer exists.
const MOSTLY: f64 = 0.6;
/// A segment that is only partly in the clean text must share this part of its letters, and this many.
const SHARED: (f64, usize) = (0.5, 8);

/// What a model should choose for `dirty` so that it says `clean`: per segment whether it stays.
pub fn choices(dirty: &str, clean: &str) -> Vec<bool> {
    let edits = Edits::new(dirty);
    exact(&edits.segments, clean).unwrap_or_else(|| by_words(&edits.segments, clean))
}

/// The script with these choices, as a text to train on: all but the choices is marked as given ([`GIVEN`]).
pub fn example(dirty: &str, clean: &str) -> String {
    let [open, close] = GIVEN;
    let script = Edits::new(dirty).script();
    let letter = |keep: bool| if keep { KEEP } else { DROP };
    script
        .iter()
        .zip(choices(dirty, clean))
        .map(|(given, keep)| format!("{open}{given}{close}{}", letter(keep)))
        .collect()
}

/// White space takes no part in the comparison.
fn solid(text: &str) -> Vec<char> {
    tidy(text).chars().filter(|c| !c.is_whitespace()).collect()
}

fn exact(segments: &[Segment], clean: &str) -> Option<Vec<bool>> {
    let parts: Vec<(Vec<char>, Vec<char>)> = segments.iter().map(|s| (solid(s.gap), solid(s.text))).collect();
    let clean = solid(clean);
    // Segments that stay in part only come into play where whole ones do not do.
    [false, true].into_iter().find_map(|in_part| {
        let (failed, kept) = (HashSet::new(), vec![false; parts.len()]);
        let mut search = Search { parts: &parts, clean: &clean, in_part, failed, kept };
        search.from(0, 0, false).then_some(search.kept)
    })
}

/// Depth-first over (segment, place in the clean text, whether the segment before stays); the first of equal lines is kept.
struct Search<'a> {
    parts: &'a [(Vec<char>, Vec<char>)],
    clean: &'a [char],
    in_part: bool,
    failed: HashSet<(usize, usize, bool)>,
    kept: Vec<bool>,
}

impl Search<'_> {
    fn from(&mut self, i: usize, at: usize, joined: bool) -> bool {
        if i == self.parts.len() {
            return at == self.clean.len();
        }
        if self.failed.contains(&(i, at, joined)) {
            return false;
        }
        let ends = self.ends(i, at, joined);
        for (keep, end) in ends {
            self.kept[i] = keep;
            if self.from(i + 1, end, keep) {
                self.kept[i] = keep;
                return true;
            }
        }
        self.failed.insert((i, at, joined));
        false
    }

    /// Where the clean text may continue behind segment `i`: it stays whole, it goes, a part of it stays.
    fn ends(&self, i: usize, at: usize, joined: bool) -> Vec<(bool, usize)> {
        let (gap, text) = &self.parts[i];
        let rest = &self.clean[at..];
        let mut out = Vec::new();
        if joined && !gap.is_empty() && rest.starts_with(gap) && rest[gap.len()..].starts_with(text) {
            out.push((true, at + gap.len() + text.len()));
        }
        if rest.starts_with(text) {
            out.push((true, at + text.len()));
        }
        out.push((false, at));
        if !self.in_part {
            return out;
        }
        let enough = |n: usize| n >= SHARED.1 && n as f64 >= SHARED.0 * text.len() as f64 && n < text.len();
        let front = rest.iter().zip(text).take_while(|(a, b)| a == b).count();
        if enough(front) {
            out.push((true, at + front));
        }
        out.extend(
            (1..text.len())
                .find(|&n| enough(text.len() - n) && rest.starts_with(&text[n..]))
                .map(|n| (true, at + text.len() - n)),
        );
        out
    }
}

fn by_words(segments: &[Segment], clean: &str) -> Vec<bool> {
    let words = |text: &str| -> Vec<String> { tidy(text).split(' ').map(str::to_lowercase).collect() };
    let mut left: HashMap<String, usize> = HashMap::new();
    for word in words(clean) {
        *left.entry(word).or_insert(0) += 1;
    }
    let mut stays = |text: &str| {
        let words = words(text);
        let mut counts = left.clone();
        let found = words.iter().filter(|w| take(&mut counts, w)).count();
        let stays = found as f64 >= MOSTLY * words.len() as f64;
        if stays {
            left = counts;
        }
        stays
    };
    segments.iter().map(|s| stays(s.text)).collect()
}

fn take(counts: &mut HashMap<String, usize>, word: &str) -> bool {
    match counts.get_mut(word) {
        Some(n) if *n > 0 => {
            *n -= 1;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(dirty: &str, clean: &str) -> String {
        choices(dirty, clean).iter().map(|keep| if *keep { KEEP } else { DROP }).collect()
    }

    #[test]
    fn by_hand() {
        assert_eq!(letters("Menu here\n\nThe cat sat.\nShare", "The cat sat."), "DKD");
        // Of a repeated line the first stays.
        assert_eq!(letters("Title x\n\nTitle x\nText.", "Title x\n\nText."), "KDK");
        // Clutter that shares words with the line below it.
        assert_eq!(letters("The cat\nThe cat sat on it.", "The cat sat on it."), "DK");
        assert_eq!(letters("It was very late. Read more", "It was very late."), "KD");
        assert_eq!(letters("Some title | Read more\nx", "Some title\nx"), "KDK");
        assert_eq!(letters("Some title | Part two\nx", "Some title | Part two\nx"), "KKK");
        assert_eq!(letters("", ""), "");
        assert_eq!(letters("Only clutter", ""), "D");
    }

    #[test]
    fn an_example_marks_what_is_given() {
        let [open, close] = GIVEN;
        let text =
            example("Menu\nThe cat.", "The cat.").replace(open, "<").replace(close, ">").replace('\u{e100}', "*");
        assert_eq!(text, "<Menu *\nThe cat. *>D< *>K");
    }

    #[test]
    fn glue_that_no_cut_falls_on_stays() {
        assert_eq!(letters("Read more The cat sat on the mat\nMenu", "The cat sat on the mat"), "KD");
        assert_eq!(letters("The cat sat on the mat [edit]\nMenu", "The cat sat on the mat"), "KD");
    }

    #[test]
    fn a_paraphrase_keeps_what_shares_its_words() {
        assert_eq!(letters("Buy now!\nThe cat sat on the old mat.", "The old cat sat on a mat."), "DK");
    }

    #[test]
    fn corrupted_pages_have_an_answer_that_gives_the_clean_side() {
        let text = "The harbour was rebuilt in 1911. Ships of every size use it today.\n\nPrices rose twice last year.\n• Bread\n• Milk";
        let (mut same, mut pages) = (0, 0);
        for seed in 0..300 {
            let page = crate::text::corrupt::corrupt_page(text, seed);
            let said = Edits::new(&page.dirty).apply(&choices(&page.dirty, &page.clean));
            pages += 1;
            same += usize::from(solid(&said) == solid(&page.clean));
        }
        assert!(same * 100 >= pages * 90, "{same} of {pages}");
    }
}
