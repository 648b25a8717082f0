//! From the score of each label to its probability: softmax, hierarchical softmax, or one sigmoid a label.

/// How the model was trained to turn scores into probabilities.
pub(super) enum Loss {
    Softmax,
    /// `ns` and `ova`: each label on its own, by fastText's table of sigmoid values
    Sigmoid(Vec<f32>),
    /// A Huffman tree of the labels: inner node `i` has row `i` of the output matrix
    Tree(Vec<Node>),
}

/// An inner node: `left` and `right` are labels below `labels`, else inner nodes counted from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    left: usize,
    right: usize,
}

/// fastText reads the sigmoid from 512 steps between −8 and 8.
const STEPS: usize = 512;
const LIMIT: f32 = 8.0;

impl Loss {
    pub(super) fn sigmoid() -> Self {
        let at = |step: usize| (step as f32 * 2.0 * LIMIT) / STEPS as f32 - LIMIT;
        Self::Sigmoid((0..=STEPS).map(|step| (1.0 / (1.0 + f64::from(-at(step)).exp())) as f32).collect())
    }

    /// The tree over labels with these counts (in the file's order, the most frequent first), built as fastText builds it.
    pub(super) fn tree(counts: &[i64]) -> Self {
        const OPEN: i64 = 1_000_000_000_000_000;
        let labels = counts.len();
        let mut weight: Vec<i64> = counts.iter().map(|count| (*count).clamp(0, OPEN - 1)).collect();
        weight.resize(2 * labels - 1, OPEN);
        let mut nodes = Vec::with_capacity(labels - 1);
        let (mut leaf, mut inner) = (labels, labels); // the next leaf is `leaf - 1`
        for made in labels..2 * labels - 1 {
            let mut next = || {
                if leaf > 0 && (weight[leaf - 1] < weight[inner] || inner == made) {
                    leaf -= 1;
                    leaf
                } else {
                    inner += 1;
                    inner - 1
                }
            };
            let (left, right) = (next(), next());
            weight[made] = weight[left].saturating_add(weight[right]).min(OPEN - 1);
            nodes.push(Node { left, right });
        }
        Self::Tree(nodes)
    }

    /// Fills `output` with the logarithms of the probabilities of `labels` labels, as fastText holds them: log(p + 1e-5).
    /// `score(i)` is row i of the output matrix times the hidden vector.
    pub(super) fn log_probabilities(&self, labels: usize, score: impl Fn(usize) -> f32, output: &mut Vec<f32>) {
        output.clear();
        match self {
            Self::Softmax => {
                output.extend((0..labels).map(score));
                softmax(output);
                output.iter_mut().for_each(|p| *p = log(*p));
            }
            Self::Sigmoid(table) => output.extend((0..labels).map(|label| log(sigmoid(table, score(label))))),
            Self::Tree(nodes) => tree(nodes, labels, score, output),
        }
    }
}

fn softmax(output: &mut [f32]) {
    let max = output.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for value in output.iter_mut() {
        *value = (*value - max).exp();
        sum += *value;
    }
    output.iter_mut().for_each(|value| *value /= sum);
}

fn sigmoid(table: &[f32], x: f32) -> f32 {
    if x < -LIMIT {
        0.0
    } else if x > LIMIT {
        1.0
    } else if x.is_nan() {
        x
    } else {
        table[((x + LIMIT) * STEPS as f32 / LIMIT / 2.0) as usize]
    }
}

/// Walks the tree from the root down, adding log(p + 1e-5) at every turn.
fn tree(nodes: &[Node], labels: usize, score: impl Fn(usize) -> f32, output: &mut Vec<f32>) {
    output.resize(2 * labels - 1, 0.0); // log probability of every node; children come before their parents
    for at in (labels..2 * labels - 1).rev() {
        let Node { left, right } = nodes[at - labels];
        let right_share = 1.0 / (1.0 + (-score(at - labels)).exp());
        output[left] = output[at] + log(1.0 - right_share);
        output[right] = output[at] + log(right_share);
    }
    output.truncate(labels);
}

fn log(x: f32) -> f32 {
    (f64::from(x) + 1e-5).ln() as f32
}
