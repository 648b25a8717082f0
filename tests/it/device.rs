//! Where the tests that can run on a GPU run: the environment variable `REPRO_TEST_DEVICE`, e.g. `cuda:0`; the processor without it.

use repro::engine::DeviceSpec;

/// `cpu`, `cuda:0`, …
pub fn device() -> String {
    std::env::var("REPRO_TEST_DEVICE").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "cpu".to_owned())
}

/// The same as libtorch has it, with its CUDA library loaded.
pub fn tensor_device() -> tch::Device {
    spec().resolve().unwrap()
}

/// Whether the same work gives the same bits again there. Sums on a GPU are made in any order.
pub fn exact() -> bool {
    device() == "cpu"
}

/// As the engine takes it.
pub fn spec() -> DeviceSpec {
    device().parse().unwrap()
}
