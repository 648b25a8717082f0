//! Every kernel that this processor can run against plain Rust, on odd sizes. What a processor lacks is not tested there.

use super::{
    attend::{self, Kernels, Scratch, View},
    elem::Elem,
    gemm::{self, Args, BLOCK, Kernel},
    isa::{Bf16, Isa, Vector},
    simd::LANES,
};
use crate::engine::pages::PAGE;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// bf16 abilities from plain Rust up to what the processor has.
fn bf16_isas() -> Vec<Isa> {
    let found = Isa::detect();
    let all = [Bf16::Avx512, Bf16::Amx];
    let upto = all.iter().position(|&b| b == found.bf16).map_or(0, |i| i + 1);
    all[..upto].iter().map(|&bf16| Isa { bf16, ..found }).collect()
}

fn vectors() -> Vec<Vector> {
    let all = [Vector::Avx2, Vector::Avx512];
    let upto = all.iter().position(|&v| v == Isa::detect().vector).map_or(0, |i| i + 1);
    all[..upto].to_vec()
}

fn numbers<E: Elem>(rng: &mut ChaCha8Rng, n: usize) -> Vec<E> {
    (0..n).map(|_| E::from_f32(rng.random_range(-1.0..1.0))).collect()
}

#[repr(align(64))]
struct Out([f32; BLOCK * 2 * LANES]);

/// One block product of `rows` rows.
fn block<E: Elem>(kernel: Kernel<E>, x: &[E], w: &[E], rows: usize, inner: usize) -> Vec<f32> {
    let mut out = Out([f32::NAN; BLOCK * 2 * LANES]);
    let args = Args {
        x: x.as_ptr(),
        x_stride: inner,
        rows,
        w: w.as_ptr(),
        panel: LANES * inner,
        inner,
        out: out.0.as_mut_ptr(),
    };
    // SAFETY: BLOCK rows of `inner`, two panels, a block of results; the kernel fits the processor.
    unsafe {
        (kernel.before)();
        (kernel.block)(&args);
        (kernel.after)();
    }
    out.0[..rows * 2 * LANES].to_vec()
}

fn check_products<E: Elem>(kernel: Kernel<E>, plain: Kernel<E>, what: &str) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for inner in [32, 96, 512] {
        let x = numbers::<E>(&mut rng, BLOCK * inner);
        let w = numbers::<E>(&mut rng, 2 * LANES * inner);
        for rows in 1..=BLOCK {
            let (got, expected) = (block(kernel, &x, &w, rows, inner), block(plain, &x, &w, rows, inner));
            for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
                assert!((g - e).abs() < 2e-4, "{what}: {rows} rows, inner {inner}, element {i}: {g} for {e}");
            }
        }
    }
}

/// A cache of three pages used out of order.
struct Cache<E> {
    dim: usize,
    keys: Vec<E>,
    values: Vec<E>,
    pages: [u32; 3],
}

impl<E: Elem> Cache<E> {
    fn random(rng: &mut ChaCha8Rng, dim: usize) -> Self {
        let wide = dim.next_multiple_of(LANES);
        let zero = E::from_f32(0.0);
        let mut cache =
            Self { dim, keys: vec![zero; 3 * PAGE * dim], values: vec![zero; 3 * PAGE * wide], pages: [2, 0, 1] };
        for position in 0..3 * PAGE {
            let (key, value) = (numbers::<E>(rng, dim), numbers::<E>(rng, dim));
            let page = cache.pages[position / PAGE] as usize;
            let (k, v) =
                (cache.keys[page * PAGE * dim..].as_mut_ptr(), cache.values[page * PAGE * wide..].as_mut_ptr());
            // SAFETY: the page's blocks of the only head.
            unsafe { attend::write(k, v, position, &key, &value) }
        }
        cache
    }

    fn attend(&self, kernels: Kernels<E>, queries: &[E], limits: &[usize]) -> Vec<f32> {
        let wide = self.dim.next_multiple_of(LANES);
        let view = View {
            keys: self.keys.as_ptr(),
            values: self.values.as_ptr(),
            key_page: PAGE * self.dim,
            value_page: PAGE * wide,
            pages: &self.pages,
            dim: self.dim,
        };
        let mut scratch = Scratch::<E>::new();
        scratch.reserve(self.dim, self.pages.len());
        scratch.queries[..queries.len()].copy_from_slice(queries);
        let mut out = Vec::new();
        // SAFETY: three pages cover the limits; the kernels fit the processor; rows of `dim` numbers, padded.
        unsafe {
            (kernels.before)();
            scratch.attend(Vector::Portable, kernels, &view, limits, 1.0 / (self.dim as f32).sqrt());
            for q in 0..limits.len() {
                let mut row = vec![E::from_f32(0.0); wide];
                scratch.take(Vector::Portable, q, self.dim, row.as_mut_ptr());
                out.extend(row[..self.dim].iter().map(|x| x.to_f32()));
            }
            (kernels.after)();
        }
        out
    }
}

fn check_attention<E: Elem>(kernels: impl Fn(usize) -> Kernels<E>, plain: Kernels<E>, near: f32, what: &str) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for dim in [32, 64, 80, 128] {
        let cache = Cache::<E>::random(&mut rng, dim);
        for count in [1, 2, 3, 7, 16] {
            for longest in [1, 31, 33, PAGE, PAGE + 1, 3 * PAGE] {
                let limits: Vec<usize> = (0..count).map(|q| (longest - q.min(longest - 1)).max(1)).collect();
                let queries = numbers::<E>(&mut rng, count * dim);
                let got = cache.attend(kernels(dim), &queries, &limits);
                let expected = cache.attend(plain, &queries, &limits);
                for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
                    let place = format!("{what}: head of {dim}, {count} queries, {longest} positions, element {i}");
                    assert!((g - e).abs() < near, "{place}: {g} for {e}");
                }
            }
        }
    }
}

#[test]
fn products_as_in_plain_rust() {
    for isa in bf16_isas() {
        check_products(u16::gemm_kernel(isa), gemm::bf16_portable_kernel(), &format!("{isa:?}"));
    }
    for vector in vectors() {
        check_products(gemm::f32_kernel(vector), gemm::f32_kernel(Vector::Portable), &format!("{vector:?}"));
    }
}

#[test]
fn attention_as_in_plain_rust() {
    for isa in bf16_isas() {
        let kernels = |dim| u16::attend_kernels(isa, dim);
        // One unit in the last place of a bf16 result below 1.
        check_attention(kernels, attend::bf16_portable_kernels(), 1.0 / 128.0, &format!("{isa:?}"));
    }
    for vector in vectors() {
        let plain = attend::f32_kernels(Vector::Portable);
        check_attention(|_| attend::f32_kernels(vector), plain, 1e-5, &format!("{vector:?}"));
    }
}
