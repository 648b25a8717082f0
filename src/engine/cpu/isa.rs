//! What this processor can do, found once at run time. Decides which kernels run; knows none of them.

use std::sync::OnceLock;
use tch::{Device, Kind};

/// Vector instructions for f32 work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vector {
    /// Plain Rust.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
}

/// Instructions for bf16 products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bf16 {
    /// None: bf16 is not worth using.
    None,
    /// AVX512-FP16 multiply-adds, numbers kept in bf16: on Intel processors whose AMX is hidden.
    Half,
    /// AVX512-BF16 dot products.
    Dot,
    /// AMX tiles, and multiply-adds for heads that do not fill them.
    Amx,
}

/// The processor's relevant abilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa {
    /// For f32.
    pub vector: Vector,
    /// For bf16.
    pub bf16: Bf16,
}

impl Isa {
    /// Plain Rust only; what other processors run, and a cross-check for the kernels in tests.
    pub const PORTABLE: Self = Self { vector: Vector::Portable, bf16: Bf16::None };

    /// The type in which libtorch multiplies faster on that device: bf16 on a GPU, and on a CPU whose instructions for it are fast
    /// (else it takes the slow dot products: 85 GFLOP/s beside 150 in f32 on one core of a model 207).
    pub fn libtorch_kind(self, device: Device) -> Kind {
        match device {
            Device::Cpu if !matches!(self.bf16, Bf16::Dot | Bf16::Amx) => Kind::Float,
            _ => Kind::BFloat16,
        }
    }

    /// Looks once, asks the kernel for the AMX tile state, remembers.
    pub fn detect() -> Self {
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(detect)
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma")) {
        return Isa::PORTABLE;
    }
    if !(has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq")) {
        return Isa { vector: Vector::Avx2, bf16: Bf16::None };
    }
    let bf16 = match (has!("avx512bf16"), amx_ready()) {
        (false, _) => Bf16::None,
        (true, true) => Bf16::Amx,
        (true, false) if has!("avx512fp16") && intel() => Bf16::Half,
        (true, false) => Bf16::Dot,
    };
    Isa { vector: Vector::Avx512, bf16 }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::PORTABLE
}

/// Whether Intel made it. Those that have AVX512-FP16 were made for AMX, whose tiles a virtual machine may hide; their bf16 dot products
/// start every other cycle on one port.
#[cfg(target_arch = "x86_64")]
fn intel() -> bool {
    // CPUID leaf 0: the vendor, "GenuineIntel" in EBX, EDX, ECX (Intel SDM volume 2, CPUID).
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

/// Whether AMX-TILE and AMX-BF16 exist and the operating system lets this process use the tile registers.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_ready() -> bool {
    // CPUID leaf 7, EDX: bit 22 AMX-BF16, bit 24 AMX-TILE (Intel SDM volume 2, CPUID).
    let leaf = std::arch::x86_64::__cpuid_count(7, 0);
    if leaf.edx & (1 << 22) == 0 || leaf.edx & (1 << 24) == 0 {
        return false;
    }
    // Linux grants the 8 KiB of tile state on request: ARCH_REQ_XCOMP_PERM for state component 18 (XTILEDATA).
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: a system call with two integers; it changes nothing but this process's permission.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_ready() -> bool {
    false
}
