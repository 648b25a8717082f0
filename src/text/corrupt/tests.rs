//! Tests of whole pages: determinism, what the two sides share, and that every kind and layout occurs.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use std::collections::{BTreeMap, BTreeSet};

fn sources() -> Sources {
    let text = "The old mill by the river was sold in March. Nobody knew who had bought it, and nobody asked.\n\
        A Short Line\nWhat did the miller say?\nThree <unk> came to the door, and \"each\" of them carried a lamp. They left before dawn (or so it seemed). In 1987, the wheel \
        stopped turning for good.\n- a list item";
    Sources::from_texts([text]).with_pages(["A page\n\nIt has its own lines.\n    and_code()\n\nEnd."])
}

#[test]
fn same_seed_same_page() {
    let sources = sources();
    for seed in 0..200 {
        assert_eq!(page(&sources, seed), page(&sources, seed));
        assert_eq!(corrupt("One.\n\nTwo lines here.", seed), corrupt("One.\n\nTwo lines here.", seed));
    }
    let different: BTreeSet<String> = (0..200).map(|seed| page(&sources, seed).dirty).collect();
    assert!(different.len() > 195);
}

/// The clean side's words stand in the dirty side in the same order.
#[test]
fn clean_is_a_subsequence_of_dirty() {
    let sources = sources();
    for seed in 0..2000 {
        let page = page(&sources, seed);
        let squeeze = |s: &str| tidy(s).replace(' ', "");
        let dirty = squeeze(&page.dirty);
        let mut from = 0;
        for line in page.clean.lines().filter(|l| !l.trim().is_empty()) {
            let line = squeeze(line);
            let at = dirty[from..]
                .find(&line)
                .unwrap_or_else(|| panic!("seed {seed}: {line:?} is not in order in {:?}", page.dirty));
            from += at + line.len();
        }
    }
}

#[test]
fn clean_side_is_tidy() {
    let sources = sources();
    for seed in 0..2000 {
        let page = page(&sources, seed);
        assert!(
            !page.clean.contains("\n\n\n") && page.clean.trim_end() == page.clean && !page.clean.starts_with('\n'),
            "seed {seed}: {:?}",
            page.clean
        );
        let code = page.layouts.contains(&Layout::Code) || page.layouts.contains(&Layout::SourcePage);
        assert!(code || page.clean.lines().all(|l| tidy(l) == l), "seed {seed}: {:?}", page.clean);
        let length = page.dirty.chars().count();
        assert!((20..=MAX_CHARS).contains(&length), "seed {seed}: {length}");
    }
}

#[test]
fn every_kind_and_layout_occurs_and_a_fifth_is_untouched() {
    let sources = sources();
    let (mut kinds, mut layouts) = (BTreeMap::<Kind, usize>::new(), BTreeMap::<Layout, usize>::new());
    let (mut untouched, mut empty, n) = (0, 0, 4000);
    for seed in 0..n {
        let page = page(&sources, seed);
        page.kinds.iter().for_each(|k| *kinds.entry(*k).or_default() += 1);
        page.layouts.iter().for_each(|l| *layouts.entry(*l).or_default() += 1);
        untouched += usize::from(page.inserted.is_empty());
        empty += usize::from(page.clean.is_empty());
    }
    for (kind, _) in Kind::ALL {
        assert!(kinds.get(&kind).is_some_and(|n| *n > 20), "{kind:?}: {kinds:?}");
    }
    for (layout, _) in Layout::ALL {
        assert!(layouts.get(&layout).is_some_and(|n| *n > 20), "{layout:?}: {layouts:?}");
    }
    let share = untouched as f64 / n as f64;
    assert!((0.18..0.32).contains(&share), "untouched {share}");
    let share = empty as f64 / n as f64;
    assert!(share < 0.04, "empty {share}");
}

/// What `inserted` says agrees with what the measure reads off the two sides: the clean side has none of it, the dirty side all.
#[test]
fn inserted_lines_are_in_dirty_and_gone_from_clean() {
    let sources = sources();
    let mut sum = measure::Measure::default();
    for seed in 0..1000 {
        let page = page(&sources, seed);
        let best = measure::measure_with(&page.dirty, &page.clean, &page.inserted, &page.clean);
        assert_eq!((best.gone, best.kept), (best.inserted, best.clean_words), "seed {seed}");
        sum.add(&best);
        for line in &page.inserted {
            assert!(
                tidy(&page.dirty.replace('\n', " ")).contains(line.as_str()),
                "seed {seed}: {line:?} in {:?}",
                page.dirty
            );
        }
    }
    // Clutter glued on without a space makes one word of two.
    assert!(sum.from_source() > 0.998, "{sum:?}");
}

/// Counter-test of the measure: an answer that is the dirty side keeps nearly all clutter.
#[test]
fn copying_everything_scores_badly() {
    let sources = sources();
    let mut sum = measure::Measure::default();
    for seed in 0..500 {
        let page = page(&sources, seed);
        sum.add(&measure::measure_with(&page.dirty, &page.clean, &page.inserted, &page.dirty));
    }
    assert!(sum.clutter_gone() < 0.03, "{sum:?}");
    assert!(sum.words_kept() > 0.99, "{sum:?}");
}

#[test]
fn given_text_keeps_its_lines() {
    let text = "A heading\n\nFirst paragraph, with  two spaces.\n• item one\n• item two\n\n    code();\nLast line.";
    let want = "A heading First paragraph, with two spaces. • item one • item two code(); Last line.";
    for seed in 0..300 {
        let page = corrupt_page(text, seed);
        assert_eq!(tidy(&page.clean), want, "seed {seed}");
        assert_eq!(page.dirty, corrupt(text, seed));
    }
    assert!((0..50).any(|seed| corrupt(text, seed) != text));
    assert_eq!(corrupt_page("", 3).clean, "");
}

#[test]
fn repetition_in_a_given_text_is_said_once() {
    let page = corrupt_page("Same title here\n\nSame title here\nText.", 0);
    assert_eq!(page.clean.matches("Same title here").count(), 1);
}
