//! Sixteen f32 lanes behind one trait: AVX-512, AVX2, and plain Rust. Kernels are written once over the trait and
//! compiled once for each; `vectorised!` makes the entry that picks one. Knows nothing of models.

/// Lanes of every vector here, whatever the hardware width.
pub const LANES: usize = 16;

/// Sixteen f32 lanes.
///
/// # Safety
/// Every function needs the instruction set of the implementing type, and pointers valid for the lanes they touch.
pub unsafe trait Simd: Copy {
    /// The vector.
    type V: Copy;
    /// Rows of 32 sums that fit the registers, with what is added to them; at most 12.
    const ROWS: usize;
    /// All lanes `x`.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn splat(x: f32) -> Self::V;
    /// Reads 16 floats.
    ///
    /// # Safety
    /// The instruction set is there; `p` is valid for reading 16 floats, aligned or not.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Reads 16 bf16.
    ///
    /// # Safety
    /// The instruction set is there; `p` is valid for reading 16 halves, aligned to two bytes.
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    /// Reads 16 pairs of bf16: the first of each, the second of each.
    ///
    /// # Safety
    /// The instruction set is there; `p` is valid for reading 32 halves, aligned to two bytes.
    unsafe fn load_bf16_pairs(p: *const u16) -> [Self::V; 2];
    /// Asks for a cache line; any address will do.
    fn prefetch(p: *const u8);
    /// Writes 16 floats.
    ///
    /// # Safety
    /// The instruction set is there; `p` is valid for writing 16 floats, aligned or not.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Writes 16 bf16, rounded to nearest even.
    ///
    /// # Safety
    /// The instruction set is there; `p` is valid for writing 16 halves, aligned to two bytes.
    unsafe fn store_bf16(p: *mut u16, v: Self::V);
    /// a + b
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// a · b
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// 1 / a for numbers from 1 to 2¹²⁶, within an ulp; above them, 0 or close to it.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn recip(a: Self::V) -> Self::V;
    /// a · b + c, rounded once where the hardware can
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Lane-wise maximum of numbers.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Lane-wise minimum of numbers.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Rounds to the nearest whole number.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn round(a: Self::V) -> Self::V;
    /// 2^n for whole n in -126..=127.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn pow2(n: Self::V) -> Self::V;
    /// Sum of the lanes.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn sum(a: Self::V) -> f32;
    /// Largest lane.
    ///
    /// # Safety
    /// The instruction set is there.
    unsafe fn hmax(a: Self::V) -> f32;

    /// e^x for x ≤ 88; relative error under 2e-7, 0 below about -87. Range reduction by ln 2 in two parts and the
    /// Taylor polynomial of degree 7 on [-0.35, 0.35].
    ///
    /// # Safety
    /// The instruction set is there.
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        const POLYNOMIAL: [f32; 7] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
        // SAFETY: the caller vouches for the instruction set.
        unsafe {
            let x = Self::max(Self::min(x, Self::splat(88.0)), Self::splat(-87.3));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            // 355/512 is exact in f32, so the first product is exact for the n that occur.
            #[expect(clippy::excessive_precision, reason = "the exact value, as f32 holds it")]
            let r = Self::fma(n, Self::splat(-0.693_359_375), x);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.0 / 5040.0);
            let mut i = 0;
            while i < POLYNOMIAL.len() {
                p = Self::fma(p, r, Self::splat(POLYNOMIAL[i]));
                i += 1;
            }
            Self::mul(p, Self::pow2(n))
        }
    }
}

/// f32 to bf16 bits, to nearest even; NaN stays NaN.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// bf16 bits to f32.
#[inline(always)]
pub fn from_bf16(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub struct Portable;

/// Applies a lane-wise function.
macro_rules! lanes {
    (|$i:ident| $e:expr) => {{
        let mut out = [0f32; LANES];
        let mut $i = 0;
        while $i < LANES {
            out[$i] = $e;
            $i += 1;
        }
        out
    }};
}

// SAFETY: plain Rust, no instruction set needed.
unsafe impl Simd for Portable {
    type V = [f32; LANES];
    const ROWS: usize = 2;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: 16 floats, as the trait says.
        unsafe { p.cast::<[f32; LANES]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::V {
        // SAFETY: 16 halves, as the trait says.
        lanes!(|i| from_bf16(unsafe { *p.add(i) }))
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> [Self::V; 2] {
        // SAFETY: 32 halves, as the trait says.
        unsafe { [lanes!(|i| from_bf16(*p.add(2 * i))), lanes!(|i| from_bf16(*p.add(2 * i + 1)))] }
    }
    #[inline(always)]
    fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: 16 floats, as the trait says.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, v: Self::V) {
        for (i, x) in v.into_iter().enumerate() {
            // SAFETY: 16 halves, as the trait says.
            unsafe { p.add(i).write(to_bf16(x)) }
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn recip(a: Self::V) -> Self::V {
        lanes!(|i| 1.0 / a[i])
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes!(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes!(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        lanes!(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn pow2(n: Self::V) -> Self::V {
        lanes!(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(a: Self::V) -> f32 {
        a.iter().sum()
    }
    #[inline(always)]
    unsafe fn hmax(a: Self::V) -> f32 {
        a.iter().fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    #![expect(
        clippy::undocumented_unsafe_blocks,
        reason = "every block is one intrinsic under the trait's own contract"
    )]

    use super::{Simd, to_bf16};
    use std::arch::x86_64::*;

    /// Two 256-bit halves.
    #[derive(Clone, Copy)]
    pub struct Avx2;

    /// One 512-bit register.
    #[derive(Clone, Copy)]
    pub struct Avx512;

    // SAFETY: AVX2 and FMA intrinsics, as the type's name says.
    unsafe impl Simd for Avx2 {
        type V = (__m256, __m256);
        const ROWS: usize = 3;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            unsafe { (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> Self::V {
            let half = |p: *const u16| unsafe {
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))
            };
            unsafe { (half(p), half(p.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_bf16_pairs(p: *const u16) -> [Self::V; 2] {
            unsafe {
                let (a, b) = (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast()));
                let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
                let first = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(x));
                let second = |x| _mm256_castsi256_ps(_mm256_and_si256(x, high));
                [(first(a), first(b)), (second(a), second(b))]
            }
        }
        #[inline(always)]
        fn prefetch(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            unsafe {
                _mm256_storeu_ps(p, v.0);
                _mm256_storeu_ps(p.add(8), v.1);
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(p: *mut u16, v: Self::V) {
            let mut lanes = [0f32; 16];
            unsafe { Self::store(lanes.as_mut_ptr(), v) }
            for (i, x) in lanes.into_iter().enumerate() {
                unsafe { p.add(i).write(to_bf16(x)) }
            }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn recip(a: Self::V) -> Self::V {
            let one = unsafe { _mm256_set1_ps(1.0) };
            unsafe { (_mm256_div_ps(one, a.0), _mm256_div_ps(one, a.1)) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            unsafe { (_mm256_min_ps(a.0, b.0), _mm256_min_ps(a.1, b.1)) }
        }
        #[inline(always)]
        unsafe fn round(a: Self::V) -> Self::V {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            unsafe { (_mm256_round_ps::<NEAREST>(a.0), _mm256_round_ps::<NEAREST>(a.1)) }
        }
        #[inline(always)]
        unsafe fn pow2(n: Self::V) -> Self::V {
            let half = |n| unsafe {
                let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
            };
            (half(n.0), half(n.1))
        }
        #[inline(always)]
        unsafe fn sum(a: Self::V) -> f32 {
            let mut lanes = [0f32; 8];
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(a.0, a.1)) }
            lanes.iter().sum()
        }
        #[inline(always)]
        unsafe fn hmax(a: Self::V) -> f32 {
            let mut lanes = [0f32; 8];
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_max_ps(a.0, a.1)) }
            lanes.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
        }
    }

    // SAFETY: AVX-512 F, BW, VL and DQ intrinsics, as the type's name says.
    unsafe impl Simd for Avx512 {
        type V = __m512;
        const ROWS: usize = 12;
        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> Self::V {
            unsafe {
                let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
            }
        }
        #[inline(always)]
        unsafe fn load_bf16_pairs(p: *const u16) -> [Self::V; 2] {
            unsafe {
                let pairs = _mm512_loadu_si512(p.cast());
                let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second)]
            }
        }
        #[inline(always)]
        fn prefetch(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn store_bf16(p: *mut u16, v: Self::V) {
            unsafe {
                // No blend by a mask: the compiler makes it a masked load of the constant, and one whose mask is empty takes hundreds of
                // cycles while the constant's page is not mapped (this made it two and a half times slower, now and then). A NaN that
                // comes from arithmetic is a quiet one, and the smallest of these rounds to itself.
                let bits = _mm512_castps_si512(v);
                let size = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff));
                let size = _mm512_min_epu32(size, _mm512_set1_epi32(0x7fc0_0000));
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
                let rounded = _mm512_add_epi32(size, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
                let sign = _mm512_andnot_si512(_mm512_set1_epi32(0x7fff_ffff), bits);
                let rounded = _mm512_or_si512(rounded, sign);
                let halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
                _mm256_storeu_si256(p.cast(), halves);
            }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn recip(a: Self::V) -> Self::V {
            unsafe {
                // 14 bits, then twice as many by one of Newton's steps: a quarter of a division's time.
                let near = _mm512_rcp14_ps(a);
                let off = _mm512_fnmadd_ps(a, near, _mm512_set1_ps(1.0));
                _mm512_fmadd_ps(near, off, near)
            }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn round(a: Self::V) -> Self::V {
            unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        unsafe fn pow2(n: Self::V) -> Self::V {
            unsafe { _mm512_scalef_ps(_mm512_set1_ps(1.0), n) }
        }
        #[inline(always)]
        unsafe fn sum(a: Self::V) -> f32 {
            unsafe { _mm512_reduce_add_ps(a) }
        }
        #[inline(always)]
        unsafe fn hmax(a: Self::V) -> f32 {
            unsafe { _mm512_reduce_max_ps(a) }
        }
    }
}

/// Makes `pub unsafe fn name(vector, args…)` that runs `generic::<S>(args…)` compiled for the wanted instruction set.
macro_rules! vectorised {
    ($(#[$doc:meta])* $name:ident => $generic:ident $(::<$t:ident: $bound:path>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {
        $(#[$doc])*
        ///
        /// # Safety
        /// `vector` is what this processor has; the pointers hold what the generic function says.
        pub unsafe fn $name$(<$t: $bound>)?(vector: $crate::engine::cpu::isa::Vector, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2$(<$t: $bound>)?($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: passed on from the caller.
                unsafe { $generic::<$crate::engine::cpu::simd::Avx2 $(, $t)?>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
            unsafe fn avx512$(<$t: $bound>)?($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: passed on from the caller.
                unsafe { $generic::<$crate::engine::cpu::simd::Avx512 $(, $t)?>($($arg),*) }
            }
            // SAFETY: the instruction set was detected, the rest is passed on from the caller.
            unsafe {
                match vector {
                    #[cfg(target_arch = "x86_64")]
                    $crate::engine::cpu::isa::Vector::Avx512 => avx512$(::<$t>)?($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    $crate::engine::cpu::isa::Vector::Avx2 => avx2$(::<$t>)?($($arg),*),
                    _ => $generic::<$crate::engine::cpu::simd::Portable $(, $t)?>($($arg),*),
                }
            }
        }
    };
}
pub(crate) use vectorised;
