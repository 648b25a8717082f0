//! The two number types the engine stores weights, activations and cache in: f32, and bf16 as raw bits. Owns what differs
//! between them: memory layout and kernels. Sums are f32 in both.

use super::{
    attend,
    buffer::Plain,
    fma, gemm,
    isa::{Bf16, Isa},
    simd::{Simd, from_bf16, to_bf16},
};

/// Consecutive inner-dimension elements that lie together in packed matrices and in the cache.
/// bf16 products take pairs.
pub trait Elem: Plain {
    /// 1 for f32, 2 for bf16.
    const PACK: usize;
    /// The libtorch type of the checkpoint copy.
    const KIND: tch::Kind;
    /// Rounds to nearest even.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
    /// Reads 16 numbers.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
    /// Reads 16 groups of [`Elem::PACK`] numbers: the first of each group, then the second, if groups have one.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn widen<S: Simd>(p: *const Self) -> [S::V; 2];
    /// Writes 16 numbers.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V);
    /// The matrix kernel of this processor.
    fn gemm_kernel(isa: Isa) -> gemm::Kernel<Self>;
    /// The attention kernels of this processor.
    fn attend_kernels(isa: Isa, head_dim: usize) -> attend::Kernels<Self>;
    /// Attention over whole sequences, where this processor has something faster for it than [`Elem::attend_kernels`].
    fn attend_whole(_isa: Isa, _head_dim: usize) -> Option<attend::Whole<Self>> {
        None
    }
}

impl Elem for f32 {
    const PACK: usize = 1;
    const KIND: tch::Kind = tch::Kind::Float;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: passed on.
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn widen<S: Simd>(p: *const Self) -> [S::V; 2] {
        // SAFETY: passed on; the second is not looked at.
        unsafe { [S::load(p); 2] }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V) {
        // SAFETY: passed on.
        unsafe { S::store(p, v) }
    }
    fn gemm_kernel(isa: Isa) -> gemm::Kernel<Self> {
        fma::kernel(isa.vector)
    }
    fn attend_kernels(isa: Isa, _head_dim: usize) -> attend::Kernels<Self> {
        attend::fma_kernels(isa.vector)
    }
}

/// bf16 as bits.
impl Elem for u16 {
    const PACK: usize = 2;
    const KIND: tch::Kind = tch::Kind::BFloat16;
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        to_bf16(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        from_bf16(self)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V {
        // SAFETY: passed on.
        unsafe { S::load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn widen<S: Simd>(p: *const Self) -> [S::V; 2] {
        // SAFETY: passed on.
        unsafe { S::load_bf16_pairs(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V) {
        // SAFETY: passed on.
        unsafe { S::store_bf16(p, v) }
    }
    fn gemm_kernel(isa: Isa) -> gemm::Kernel<Self> {
        match isa.bf16 {
            #[cfg(target_arch = "x86_64")]
            Bf16::Amx => super::amx::gemm_kernel(),
            #[cfg(target_arch = "x86_64")]
            Bf16::Dot => super::bf16::dot_kernel(),
            #[cfg(target_arch = "x86_64")]
            Bf16::Half => super::half::gemm_kernel(),
            _ => fma::kernel(isa.vector),
        }
    }
    fn attend_kernels(isa: Isa, head_dim: usize) -> attend::Kernels<Self> {
        match isa.bf16 {
            #[cfg(target_arch = "x86_64")]
            Bf16::Amx if head_dim.is_multiple_of(super::amx::HEAD) => super::amx::attend_kernels(),
            #[cfg(target_arch = "x86_64")]
            Bf16::Dot => super::bf16::attend_kernels(),
            _ => attend::fma_kernels(isa.vector),
        }
    }
    #[cfg(target_arch = "x86_64")]
    fn attend_whole(isa: Isa, head_dim: usize) -> Option<attend::Whole<Self>> {
        use super::half::attend as half;
        (isa.bf16 == Bf16::Half && head_dim.is_multiple_of(half::HEAD)).then_some(half::attend as attend::Whole<Self>)
    }
}
