//! Every kernel that this processor can run against plain Rust, on odd sizes. What a processor lacks is not tested there.

use super::{
    attend::{self, Kernels, Scratch, View},
    buffer::Shared,
    elem::Elem,
    fma,
    gemm::{self, Args, BLOCK, Kernel, Rows},
    isa::{Bf16, Isa, Vector},
    simd::LANES,
};
use crate::engine::pages::PAGE;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// bf16 abilities from plain Rust up to what the processor has.
fn bf16_isas() -> Vec<Isa> {
    let found = Isa::detect();
    let dots = [Bf16::Dot].into_iter().filter(|_| std::is_x86_feature_detected!("avx512bf16"));
    let halves = [Bf16::Half].into_iter().filter(|_| std::is_x86_feature_detected!("avx512fp16"));
    let tiles = [Bf16::Amx].into_iter().filter(|&b| b == found.bf16);
    let all = vectors().into_iter().map(|vector| Isa { vector, bf16: Bf16::None });
    all.chain(dots.chain(halves).chain(tiles).map(|bf16| Isa { bf16, ..found })).collect()
}

fn vectors() -> Vec<Vector> {
    let all = [Vector::Portable, Vector::Avx2, Vector::Avx512];
    let upto = all.iter().position(|&v| v == Isa::detect().vector).map_or(0, |i| i + 1);
    all[..upto].to_vec()
}

fn numbers<E: Elem>(rng: &mut ChaCha8Rng, n: usize) -> Vec<E> {
    (0..n).map(|_| E::from_f32(rng.random_range(-1.0..1.0))).collect()
}

/// Products as the packed layout defines them, one after the other.
fn plain_products<E: Elem>() -> Kernel<E> {
    unsafe fn nothing() {}
    unsafe fn block<E: Elem>(args: &Args<E>) {
        for row in 0..args.rows {
            for column in 0..2 * LANES {
                let mut sum = 0f32;
                for k in 0..args.inner {
                    let at = (k / E::PACK * LANES + column % LANES) * E::PACK + k % E::PACK;
                    // SAFETY: inside the rows and panels that the caller gave.
                    let (a, w) = unsafe {
                        (*args.x.add(row * args.x_stride + k), *args.w.add(column / LANES * args.panel + at))
                    };
                    sum += a.to_f32() * w.to_f32();
                }
                // SAFETY: 32 × 32 floats.
                unsafe { *args.out.add(row * 2 * LANES + column) = sum }
            }
        }
    }
    Kernel { before: nothing, stage: gemm::unstaged, block: block::<E>, after: nothing, form: None }
}

/// Scores and weighted sums as the cache's layout defines them.
fn plain_attention<E: Elem>() -> Kernels<E> {
    unsafe fn nothing() {}
    unsafe fn scores<E: Elem>(
        v: &View<E>,
        queries: *const E,
        count: usize,
        limit: usize,
        out: *mut f32,
        stride: usize,
    ) {
        for p in 0..limit {
            for q in 0..count {
                // SAFETY: inside the view and the rows, by the layout.
                unsafe {
                    let page = v.keys.add(v.pages[p / PAGE] as usize * v.key_page);
                    let block = page.add(p % PAGE / LANES * v.dim * LANES);
                    let key =
                        |d: usize| (*block.add((d / E::PACK * LANES + p % LANES) * E::PACK + d % E::PACK)).to_f32();
                    let dot = (0..v.dim).map(|d| (*queries.add(q * v.dim + d)).to_f32() * key(d)).sum();
                    *out.add(q * stride + p) = dot;
                }
            }
        }
    }
    unsafe fn mix<E: Elem>(v: &View<E>, weights: *const E, stride: usize, count: usize, limit: usize, out: *mut f32) {
        let wide = v.dim.next_multiple_of(LANES);
        for q in 0..count {
            for d in 0..v.dim {
                let mut sum = 0f32;
                for p in 0..limit {
                    // SAFETY: inside the view and the rows, by the layout.
                    unsafe {
                        let page = v.values.add(v.pages[p / PAGE] as usize * v.value_page);
                        let value = *page.add((p % PAGE / E::PACK * wide + d) * E::PACK + p % E::PACK);
                        sum += (*weights.add(q * stride + p)).to_f32() * value.to_f32();
                    }
                }
                // SAFETY: `count` rows of `wide`.
                unsafe { *out.add(q * wide + d) = sum }
            }
        }
    }
    Kernels { before: nothing, after: nothing, scores: scores::<E>, mix: mix::<E> }
}

#[repr(align(64))]
struct Out([f32; BLOCK * 2 * LANES]);

/// One block product of `rows` rows.
fn block<E: Elem>(kernel: Kernel<E>, x: &[E], w: &[E], rows: usize, inner: usize) -> Vec<f32> {
    let mut out = Out([f32::NAN; BLOCK * 2 * LANES]);
    let (mut packed, mut scale) = (w.to_vec(), 1.0);
    if let Some(form) = kernel.form {
        let factor = (form.factor)(&[w]);
        (form.numbers)(w, factor, &mut packed);
        scale = 1.0 / factor;
    }
    let args = Args {
        x: x.as_ptr(),
        x_stride: inner,
        rows,
        w: packed.as_ptr(),
        panel: LANES * inner,
        inner,
        scale,
        out: out.0.as_mut_ptr(),
    };
    // SAFETY: BLOCK rows of `inner`, two panels, a block of results; the kernel fits the processor.
    unsafe {
        (kernel.before)();
        (kernel.stage)(&Rows { data: Shared::read_only(x.as_ptr()), stride: inner, rows });
        (kernel.block)(&args);
        (kernel.after)();
    }
    out.0[..rows * 2 * LANES].to_vec()
}

/// Sums of products of numbers below 1, `near` a product apart at most.
fn check_products<E: Elem>(kernel: Kernel<E>, plain: Kernel<E>, near: f32, what: &str) {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for inner in [32, 96, 512, 1056] {
        let x = numbers::<E>(&mut rng, BLOCK * inner);
        let w = numbers::<E>(&mut rng, 2 * LANES * inner);
        for rows in 1..=BLOCK {
            let (got, expected) = (block(kernel, &x, &w, rows, inner), block(plain, &x, &w, rows, inner));
            for (i, (g, e)) in got.iter().zip(&expected).enumerate() {
                assert!(
                    (g - e).abs() < near * (inner as f32).sqrt(),
                    "{what}: {rows} rows, inner {inner}, element {i}: {g} for {e}"
                );
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
        // Sums in fp16: a random product is 1/3, the error 1.3e-3 of the sum, and this is five times that.
        let near = if isa.bf16 == Bf16::Half { 2.2e-3 } else { 6e-6 };
        check_products(u16::gemm_kernel(isa), plain_products(), near, &format!("{isa:?}"));
    }
    for vector in vectors() {
        check_products(fma::kernel::<f32>(vector), plain_products(), 6e-6, &format!("{vector:?}"));
    }
}

#[test]
fn attention_as_in_plain_rust() {
    for isa in bf16_isas() {
        let kernels = |dim| u16::attend_kernels(isa, dim);
        // One unit in the last place of a bf16 result below 1.
        check_attention(kernels, plain_attention(), 1.0 / 128.0, &format!("{isa:?}"));
    }
    for vector in vectors() {
        check_attention(|_| attend::fma_kernels::<f32>(vector), plain_attention(), 1e-5, &format!("{vector:?}"));
    }
}

/// The kernel's scaled fp16: numbers of any size, in rows of any size, and what is no number.
#[test]
fn scaled_halves_keep_what_bf16_holds() {
    if !std::is_x86_feature_detected!("avx512fp16") {
        return;
    }
    let kernel = super::half::gemm_kernel();
    let (inner, rows) = (160, 5);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let scaled = |rng: &mut ChaCha8Rng, n: usize, scale: f32| -> Vec<u16> {
        (0..n).map(|_| u16::from_f32(rng.random_range(-1.0..1.0f32) * scale)).collect()
    };
    for (of_x, of_w) in [(1e30, 1e-30), (1e-30, 1e30), (1e-36, 1.0), (1.0, 1e-36), (3e38, 1e-38), (7e4, 9e4)] {
        let mut x = scaled(&mut rng, BLOCK * inner, of_x);
        // One number far above the others of its row.
        x[inner] = u16::from_f32(of_x * 500.0f32.min(3.3e38 / of_x));
        x[2 * inner..3 * inner].fill(0);
        let w = scaled(&mut rng, 2 * LANES * inner, of_w);
        let (got, expected) = (block(kernel, &x, &w, rows, inner), block(plain_products(), &x, &w, rows, inner));
        for (row, (got, expected)) in got.chunks(2 * LANES).zip(expected.chunks(2 * LANES)).enumerate() {
            let size = expected.iter().map(|e| e.abs()).fold(0.0, f32::max);
            for (g, e) in got.iter().zip(expected) {
                assert!((g - e).abs() <= 0.01 * size, "{of_x} · {of_w}, row {row}: {g} for {e}");
            }
        }
    }
    let mut x = scaled(&mut rng, BLOCK * inner, 1.0);
    x[0] = u16::from_f32(f32::NAN);
    x[inner] = u16::from_f32(f32::INFINITY);
    let w = scaled(&mut rng, 2 * LANES * inner, 1.0);
    let got = block(kernel, &x, &w, rows, inner);
    assert!(got[..2 * LANES].iter().all(|g| g.is_nan()), "a row that is no number");
    assert!(got[2 * LANES..4 * LANES].iter().all(|g| !g.is_finite()), "a row with an infinity");
    assert!(got[4 * LANES..].iter().all(|g| g.is_finite()), "its neighbours");
}

/// What a sequence's result rests on: no row's bits depend on how many rows are computed with it.
#[test]
fn a_row_is_the_same_among_others() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let inner = 544;
    let (x, w) = (numbers::<u16>(&mut rng, BLOCK * inner), numbers::<u16>(&mut rng, 2 * LANES * inner));
    for isa in bf16_isas() {
        let kernel = u16::gemm_kernel(isa);
        let all = block(kernel, &x, &w, BLOCK, inner);
        for rows in 1..BLOCK {
            assert_eq!(block(kernel, &x, &w, rows, inner), all[..rows * 2 * LANES], "{isa:?}: {rows} rows");
        }
    }
}
