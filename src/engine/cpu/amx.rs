//! bf16 kernels on AMX tiles, in assembly: the compiler has no stable intrinsics for them. Tiles are 16 rows of 64 bytes.
//! TDPBF16PS adds products of pairs in one fixed order, so a row's result does not depend on the other rows of its tile.
#![cfg(target_arch = "x86_64")]

use super::{
    attend::{GROUP, Kernels, View},
    gemm::{Args, INNER, Kernel, unstaged},
    simd::LANES,
};
use crate::engine::pages::PAGE;
use std::arch::asm;

/// Elements of one packed tile: 16 pairs × 16 columns × 2.
const TILE: usize = 512;

/// Matrices on AMX: per 32 inner elements, two tiles of rows times two of columns.
pub fn gemm_kernel() -> Kernel<u16> {
    Kernel { before: configure, stage: unstaged, block, after: release, form: None }
}

/// The 64-byte operand of LDTILECFG: palette 1, eight tiles of 16 rows × 64 bytes (Intel SDM, volume 1, chapter 18).
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static TILES: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

unsafe fn configure() {
    // SAFETY: only on processors with AMX; a valid configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const TILES, options(nostack, readonly, preserves_flags)) }
}

unsafe fn release() {
    // SAFETY: only on processors with AMX.
    unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
}

unsafe fn block(args: &Args<u16>) {
    let second = if args.rows > 16 { 16 * args.x_stride } else { 0 };
    // SAFETY: rows up to the next multiple of 16 are readable, panels hold `inner / 32` tiles, `out` 32 × 32 floats.
    unsafe {
        if second == 0 {
            asm!(
                "tilezero tmm0", "tilezero tmm1",
                "2:",
                "tileloadd tmm4, [{x} + {xs}]",
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm7, [{v} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "add {x}, 64", "add {w}, 1024", "add {v}, 1024",
                "dec {n}",
                "jnz 2b",
                "tilestored [{out} + {row}], tmm0",
                "tilestored [{out} + {row} + 64], tmm1",
                x = inout(reg) args.x => _, xs = in(reg) args.x_stride * 2,
                w = inout(reg) args.w => _, v = inout(reg) args.w.add(args.panel) => _, line = in(reg) 64usize,
                n = inout(reg) args.inner / INNER => _,
                out = in(reg) args.out, row = in(reg) 128usize,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        } else {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{x} + {xs}]",
                "tileloadd tmm6, [{w} + {line}]",
                "tileloadd tmm7, [{v} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{y} + {xs}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {x}, 64", "add {y}, 64", "add {w}, 1024", "add {v}, 1024",
                "dec {n}",
                "jnz 2b",
                "tilestored [{out} + {row}], tmm0",
                "tilestored [{out} + {row} + 64], tmm1",
                "tilestored [{out} + {row} + 2048], tmm2",
                "tilestored [{out} + {row} + 2112], tmm3",
                x = inout(reg) args.x => _, y = inout(reg) args.x.add(second) => _, xs = in(reg) args.x_stride * 2,
                w = inout(reg) args.w => _, v = inout(reg) args.w.add(args.panel) => _, line = in(reg) 64usize,
                n = inout(reg) args.inner / INNER => _,
                out = in(reg) args.out, row = in(reg) 128usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

const _: () = assert!(TILE * 2 == 1024, "the assembly steps by one packed tile");

/// Heads must be a multiple of this wide: four tiles of value columns.
pub const HEAD: usize = 64;

/// Attention on AMX, for heads of a multiple of [`HEAD`].
pub fn attend_kernels() -> Kernels<u16> {
    Kernels { before: configure, after: release, scores, mix }
}

const _: () =
    assert!(PAGE == 4 * LANES && GROUP == 32, "the assembly takes a page as four blocks, a group as one tile");

/// Asks for the cache lines of `elements` numbers: the hardware does not foresee the jump to another page.
unsafe fn prefetch(start: *const u16, elements: usize) {
    // SAFETY: prefetches never fault.
    unsafe {
        asm!(
            "2:",
            "prefetcht1 [{p}]", "prefetcht1 [{p} + 64]", "prefetcht1 [{p} + 128]", "prefetcht1 [{p} + 192]",
            "add {p}, 256",
            "cmp {p}, {end}",
            "jb 2b",
            p = inout(reg) start => _, end = in(reg) start.add(elements),
            options(nostack, readonly),
        );
    }
}

/// A page is four blocks of 16 keys: one tile of scores each, summed over `dim / 32` tiles.
unsafe fn scores(view: &View<u16>, queries: *const u16, _count: usize, limit: usize, out: *mut f32, stride: usize) {
    for (number, &page) in view.pages.iter().enumerate().take(limit.div_ceil(PAGE)) {
        // SAFETY: the page is inside the view; queries and score rows have room for all 16, used or not.
        unsafe {
            let keys = view.keys.add(page as usize * view.key_page);
            match view.pages.get(number + 1) {
                Some(&next) => prefetch(view.keys.add(next as usize * view.key_page), PAGE * view.dim),
                None => prefetch(view.values.add(view.pages[0] as usize * view.value_page), PAGE * view.dim),
            }
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tileloadd tmm4, [{q} + {qs}]",
                "tileloadd tmm5, [{k} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm5",
                "lea {t}, [{k} + {block}]",
                "tileloadd tmm6, [{t} + {line}]",
                "tdpbf16ps tmm1, tmm4, tmm6",
                "add {t}, {block}",
                "tileloadd tmm7, [{t} + {line}]",
                "tdpbf16ps tmm2, tmm4, tmm7",
                "add {t}, {block}",
                "tileloadd tmm5, [{t} + {line}]",
                "tdpbf16ps tmm3, tmm4, tmm5",
                "add {q}, 64", "add {k}, 1024",
                "dec {n}",
                "jnz 2b",
                "tilestored [{out} + {os}], tmm0",
                "tilestored [{out} + {os} + 64], tmm1",
                "tilestored [{out} + {os} + 128], tmm2",
                "tilestored [{out} + {os} + 192], tmm3",
                q = inout(reg) queries => _, qs = in(reg) view.dim * 2,
                k = inout(reg) keys => _, line = in(reg) 64usize, block = in(reg) view.dim * LANES * 2,
                t = out(reg) _, n = inout(reg) view.dim / INNER => _,
                out = in(reg) out.add(number * PAGE), os = in(reg) stride * 4,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

/// Four tiles of results (64 value columns) at a time, summed over all groups of 32 positions.
unsafe fn mix(view: &View<u16>, weights: *const u16, stride: usize, _count: usize, limit: usize, out: *mut f32) {
    let wide = view.dim;
    for d in (0..wide).step_by(HEAD) {
        // SAFETY: tiles were configured by `before`; weight and result rows have room for all 16, used or not; groups
        // of positions below the limit are inside the view, and their values behind it were cleared.
        unsafe {
            asm!(
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, options(nostack, nomem),
            );
            for (number, &page) in view.pages.iter().enumerate().take(limit.div_ceil(PAGE)) {
                let groups = (limit - number * PAGE).min(PAGE).div_ceil(GROUP);
                let values = view.values.add(page as usize * view.value_page + d * 2);
                if let (0, Some(&next)) = (d, view.pages.get(number + 1)) {
                    prefetch(view.values.add(next as usize * view.value_page), PAGE * view.dim);
                }
                asm!(
                    "2:",
                    "tileloadd tmm4, [{w} + {ws}]",
                    "tileloadd tmm5, [{v} + {vs}]",
                    "tdpbf16ps tmm0, tmm4, tmm5",
                    "tileloadd tmm6, [{v} + {vs} + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm6",
                    "tileloadd tmm7, [{v} + {vs} + 128]",
                    "tdpbf16ps tmm2, tmm4, tmm7",
                    "tileloadd tmm5, [{v} + {vs} + 192]",
                    "tdpbf16ps tmm3, tmm4, tmm5",
                    "add {w}, 64", "add {v}, {group}",
                    "dec {n}",
                    "jnz 2b",
                    w = inout(reg) weights.add(number * PAGE) => _, ws = in(reg) stride * 2,
                    v = inout(reg) values => _, vs = in(reg) wide * 4, group = in(reg) GROUP * wide * 2,
                    n = inout(reg) groups => _,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
            asm!(
                "tilestored [{out} + {os}], tmm0",
                "tilestored [{out} + {os} + 64], tmm1",
                "tilestored [{out} + {os} + 128], tmm2",
                "tilestored [{out} + {os} + 192], tmm3",
                out = in(reg) out.add(d), os = in(reg) wide * 4,
                options(nostack),
            );
        }
    }
}
