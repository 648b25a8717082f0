//! OpenLM's forward and backward pass written out by hand, for processors with AVX512-BF16: matrix products by libtorch (`products`),
//! everything between them in our own kernels, one pass over memory each. The residual stream and its gradient stay in f32.
//! Computes what [`super::pretrain`] would by automatic differentiation; other models, types and devices are its business.
//!
//! Where the time goes otherwise (28.8 M parameters, 4,096 tokens, eager PyTorch): half of it outside matrix products.

#[cfg(target_arch = "x86_64")]
mod attend;
#[cfg(target_arch = "x86_64")]
mod buffers;
#[cfg(target_arch = "x86_64")]
mod entropy;
#[cfg(target_arch = "x86_64")]
mod heads;
#[cfg(target_arch = "x86_64")]
mod lanes;
#[cfg(target_arch = "x86_64")]
mod norm;
#[cfg(target_arch = "x86_64")]
mod products;
#[cfg(target_arch = "x86_64")]
mod step;
#[cfg(target_arch = "x86_64")]
mod swiglu;

#[cfg(target_arch = "x86_64")]
pub use step::Fused;

#[cfg(not(target_arch = "x86_64"))]
pub use elsewhere::Fused;

/// Other processors have no such step.
#[cfg(not(target_arch = "x86_64"))]
mod elsewhere {
    use crate::{
        models::causal::CausalConfig,
        train::{
            loss::Terms,
            optim::FlatParameters,
            pretrain::{Contexts, Sums},
        },
    };
    use tch::{Kind, Tensor};

    /// Never made.
    #[derive(Debug)]
    pub enum Fused {}

    impl Fused {
        /// None.
        pub fn takes(_: &CausalConfig, _: tch::Device) -> bool {
            false
        }

        /// None.
        pub fn new(_: &CausalConfig, _: &FlatParameters, _: Kind) -> Option<Self> {
            None
        }
        /// Cannot be called.
        pub fn gradient(&mut self, _: &FlatParameters, _: &[Contexts], _: Terms) -> (Sums, Tensor) {
            match *self {}
        }
    }
}
