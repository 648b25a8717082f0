//! Gradient checkpointing: a backward pass that keeps one residual stream per block and computes the inside of each block
//! again when its turn comes. Memory for activations falls from all blocks to one, at the price of a second forward pass.
//! Works on any [`CausalModel`]; knows nothing of losses or optimisers.

use crate::models::causal::CausalModel;
use tch::{Kind, Tensor};

/// Forward and backward over `tokens` [B, T]. The model's parameters must be leaves
/// ([`super::optim::FlatParameters::leaves`]); their gradients are added up.
/// `surrogate` takes the hidden states [B, T, H] after the final norm and returns the scalar to differentiate.
pub fn backward(model: &CausalModel, tokens: &Tensor, kind: Kind, surrogate: impl FnOnce(&Tensor) -> Tensor) {
    let table = model.rope(tokens.size()[1], tokens.device(), kind);
    let mut streams = Vec::with_capacity(model.layers() + 1);
    tch::no_grad(|| {
        let mut x = model.embed(tokens);
        for layer in 0..model.layers() {
            let next = model.block(&x, layer, &table, kind);
            streams.push(std::mem::replace(&mut x, next));
        }
        streams.push(x);
    });
    let again = |streams: &mut Vec<Tensor>| streams.pop().map(|x| x.set_requires_grad(true));
    let top = again(&mut streams).expect("the last block's output was pushed");
    surrogate(&model.finish(&top, kind)).backward();
    let mut grad = top.grad();
    for layer in (0..model.layers()).rev() {
        let x = again(&mut streams).expect("one stream per block was pushed");
        pull(&model.block(&x, layer, &table, kind), &grad);
        grad = x.grad();
    }
    pull(&model.embed(tokens), &grad);
}

/// Backward from `y` with the gradient `grad` coming in.
fn pull(y: &Tensor, grad: &Tensor) {
    (y * grad).sum(Kind::Float).backward();
}
