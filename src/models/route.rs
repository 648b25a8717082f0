//! Which way a forward pass takes: the one that suits a processor, or the one that suits a GPU, with few and large operations, no
//! masks, and nothing that waits for the device. Both compute the same. Knows devices; no models.

use std::cell::Cell;
use tch::{Device, Kind, Tensor};

thread_local! {
    static FORCED: Cell<bool> = const { Cell::new(false) };
}

/// Whether work on `device` takes the way of a GPU.
pub fn gpu(device: Device) -> bool {
    device != Device::Cpu || FORCED.get()
}

/// While it lives, this thread's work on the processor takes the way of a GPU too (tests, so that machines without one cover it).
#[doc(hidden)]
#[derive(Debug)]
pub struct AsOnGpu {
    before: bool,
}

impl AsOnGpu {
    /// From now on.
    pub fn begin() -> Self {
        Self { before: FORCED.replace(true) }
    }
}

impl Drop for AsOnGpu {
    fn drop(&mut self) {
        FORCED.set(self.before);
    }
}

/// RMS norm over the last dimension in one kernel, where input, gain and result are of one type and the way is a GPU's.
pub(super) fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64, kind: Kind) -> Option<Tensor> {
    let alike = x.kind() == kind && gain.kind() == kind;
    (alike && gpu(x.device())).then(|| x.rms_norm(gain.size(), Some(gain), eps))
}

/// Causal attention: queries [B, heads, T, D], keys and values [B, kv_heads, T, D], to [B, heads, T, D].
///
/// Without a mask and with as many queries as keys, so that libtorch takes a flash kernel on a GPU in bf16. Those kernels share
/// keys among heads by themselves; where none of them fits (f32, the processor) the keys are repeated.
pub(super) fn causal(q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
    let groups = q.size()[1] / k.size()[1];
    let attend = |k: &Tensor, v: &Tensor, shared: bool| {
        Tensor::scaled_dot_product_attention(q, k, v, None::<Tensor>, 0.0, true, None, shared)
    };
    if groups == 1 {
        attend(k, v, false)
    } else if q.device().is_cuda() && backend(q, k, v) != MATH {
        attend(k, v, true)
    } else {
        attend(&repeat_heads(k, groups), &repeat_heads(v, groups), false)
    }
}

/// libtorch's number of the way that forms all scores at once.
const MATH: i64 = 0;

/// Which kernel libtorch would take for [`causal`] with shared keys: 0 none that is fused, 1 flash, 2 memory-efficient, 3 cuDNN. Asks the
/// host only.
pub fn backend(q: &Tensor, k: &Tensor, v: &Tensor) -> i64 {
    let shared = q.size()[1] != k.size()[1];
    Tensor::f_internal_fused_sdp_choice(q, k, v, None::<Tensor>, 0.0, true, None, shared).unwrap_or(MATH)
}

/// [B, kv_heads, T, D] to [B, kv_heads · groups, T, D], each head repeated in place.
pub(super) fn repeat_heads(x: &Tensor, groups: i64) -> Tensor {
    if groups == 1 {
        return x.shallow_clone();
    }
    let [b, h, t, d] = x.size()[..] else { unreachable!("heads have four dimensions") };
    x.unsqueeze(2).expand([b, h, groups, t, d], false).reshape([b, h * groups, t, d])
}
