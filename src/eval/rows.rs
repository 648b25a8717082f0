//! How questions are laid out for the model, so that what candidates share is computed once. Pure: no tensors.
//!
//! The candidates of a question mostly differ in their last tokens. Their common start becomes the row's prefix; what each
//! still needs as input becomes a branch, which sees the prefix and itself:
//!
//! ```text
//! candidates   c c c c A B        row   c c c c | A | X Y
//!              c c c c X Y Z            prefix   branches (last tokens are only predicted)
//! ```
//!
//! A candidate of one token needs no branch: the prefix predicts it.

use super::prompt::{Candidate, Question};

/// Tokens that sharing must save; below, the mask costs more than the tokens.
const WORTH_SHARING: usize = 16;
/// Branch lengths are sorted in steps of this, then by prefix length: rows of a batch then need little padding.
const STEP: usize = 16;

/// One row of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Index of the question.
    pub question: usize,
    /// Tokens that all candidates of the row start with.
    pub prefix: Vec<u32>,
    /// Further inputs of each candidate; empty where the prefix is all.
    pub branches: Vec<Vec<u32>>,
    /// Which candidates the branches belong to.
    pub candidates: Vec<usize>,
    /// For each candidate of the row, what is predicted from where.
    pub targets: Vec<Vec<Target>>,
}

/// A token that is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The place whose state predicts it.
    pub place: Place,
    /// The token.
    pub token: u32,
}

/// A place in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Offset in the prefix.
    Prefix(usize),
    /// Offset in the branches, which stand one after the other.
    Branch(usize),
}

impl Row {
    /// Tokens of all branches.
    pub fn branch_tokens(&self) -> usize {
        self.branches.iter().map(Vec::len).sum()
    }
}

/// Rows of all questions, sorted for batching. Every candidate of a question is in exactly one row.
pub fn rows(questions: &[Question]) -> Vec<Row> {
    let mut rows: Vec<Row> = questions.iter().enumerate().flat_map(|(i, q)| of_question(i, q)).collect();
    rows.sort_by_key(|r| (r.branch_tokens().div_ceil(STEP), r.prefix.len(), r.branch_tokens(), r.question));
    rows
}

/// Cuts sorted rows into batches of at most `tokens` tokens, padding included (one row at least). Rows with and without
/// branches do not mix.
pub fn batches(rows: &[Row], tokens: usize) -> Vec<&[Row]> {
    let mut batches = Vec::new();
    let mut start = 0;
    let (mut prefix, mut branch) = (0, 0);
    for (i, row) in rows.iter().enumerate() {
        let wider = (prefix.max(row.prefix.len()), branch.max(row.branch_tokens()));
        let full = (wider.0 + wider.1) * (i + 1 - start) > tokens;
        let other = i > start && (branch == 0) != (row.branch_tokens() == 0);
        if i > start && (full || other) {
            batches.push(&rows[start..i]);
            start = i;
            (prefix, branch) = (row.prefix.len(), row.branch_tokens());
        } else {
            (prefix, branch) = wider;
        }
    }
    if start < rows.len() {
        batches.push(&rows[start..]);
    }
    batches
}

fn of_question(index: usize, question: &Question) -> Vec<Row> {
    let inputs: Vec<&[u32]> = question.candidates.iter().map(|c| &c.tokens[..c.tokens.len() - 1]).collect();
    let shared = common(&inputs);
    let all: Vec<usize> = (0..inputs.len()).collect();
    if shared > 0 && shared * (inputs.len() - 1) >= WORTH_SHARING {
        return vec![row(index, question, &all, shared)];
    }
    all.iter().map(|&c| row(index, question, &[c], inputs[c].len())).collect()
}

fn common(inputs: &[&[u32]]) -> usize {
    let Some((first, rest)) = inputs.split_first() else { return 0 };
    rest.iter().fold(first.len(), |n, other| first[..n].iter().zip(*other).take_while(|(a, b)| a == b).count())
}

fn row(index: usize, question: &Question, candidates: &[usize], shared: usize) -> Row {
    let of = |c: usize| &question.candidates[c];
    let mut offset = 0;
    let mut branches = Vec::new();
    let mut targets = Vec::new();
    for &c in candidates {
        let Candidate { tokens, from } = of(c);
        let branch = tokens[shared..tokens.len() - 1].to_vec();
        let place = |input: usize| match input.checked_sub(shared) {
            None => Place::Prefix(input),
            Some(past) => Place::Branch(offset + past),
        };
        targets.push((*from..tokens.len()).map(|at| Target { place: place(at - 1), token: tokens[at] }).collect());
        offset += branch.len();
        branches.push(branch);
    }
    let prefix = candidates.first().map(|&c| of(c).tokens[..shared].to_vec()).unwrap_or_default();
    Row { question: index, prefix, branches, candidates: candidates.to_vec(), targets }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(context: &[u32], answers: &[&[u32]]) -> Question {
        let candidate = |a: &&[u32]| Candidate { tokens: [context, a].concat(), from: context.len() };
        Question { index: 0, gold: Some(0), candidates: answers.iter().map(candidate).collect(), trimmed: false }
    }

    #[test]
    fn a_row_is_the_picture_above() {
        let context: Vec<u32> = (100..120).collect();
        let rows = rows(&[question(&context, &[&[1, 2], &[3, 4, 5], &[6]])]);
        let [row] = &rows[..] else { panic!("one row, got {rows:?}") };
        assert_eq!(row.prefix, context);
        assert_eq!(row.branches, [vec![1], vec![3, 4], vec![]]);
        let at = |place, token| Target { place, token };
        assert_eq!(row.targets[0], [at(Place::Prefix(19), 1), at(Place::Branch(0), 2)]);
        assert_eq!(row.targets[1], [at(Place::Prefix(19), 3), at(Place::Branch(1), 4), at(Place::Branch(2), 5)]);
        assert_eq!(row.targets[2], [at(Place::Prefix(19), 6)]);
    }

    #[test]
    fn candidates_without_a_common_start_stand_alone() {
        let candidate = |first: u32| Candidate { tokens: [vec![first], (0..30).collect()].concat(), from: 20 };
        let apart = Question { index: 0, gold: Some(0), candidates: vec![candidate(1), candidate(2)], trimmed: true };
        let rows = rows(&[apart, question(&[7, 8], &[&[1], &[2]])]);
        // Two rows of the first question; the second's prefix saves too little.
        assert_eq!(
            rows.iter().map(|r| (r.question, r.prefix.len(), r.branch_tokens())).collect::<Vec<_>>(),
            [(1, 2, 0), (1, 2, 0), (0, 30, 0), (0, 30, 0)]
        );
    }

    #[test]
    fn batches_hold_their_tokens_and_lose_no_row() {
        let context = |n: u32| (0..n).collect::<Vec<u32>>();
        let questions: Vec<Question> = (17..60)
            .map(|n| {
                let long: Vec<u32> = (0..n % 7 + 2).collect();
                question(&context(n), &[&[1], if n % 3 == 0 { &[2] } else { &long }])
            })
            .collect();
        let rows = rows(&questions);
        for tokens in [1, 100, 300, 100_000] {
            let batches = batches(&rows, tokens);
            assert_eq!(batches.concat(), rows);
            for batch in batches {
                let widest = |f: fn(&Row) -> usize| batch.iter().map(f).max().unwrap_or(0);
                let size = batch.len() * (widest(|r| r.prefix.len()) + widest(Row::branch_tokens));
                assert!(batch.len() == 1 || size <= tokens, "{size} tokens in a batch of {tokens}");
                assert!(batch.iter().all(|r| (r.branch_tokens() == 0) == (batch[0].branch_tokens() == 0)));
            }
        }
    }
}
