//! Where the tests compute: the environment variable `REPRO_TEST_DEVICE` (`cpu`, `cuda:N`), the CPU without it.

use repro::engine::DeviceSpec;

/// As a pipeline writes it.
pub fn device() -> String {
    std::env::var("REPRO_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
}

/// As the engine takes it.
pub fn spec() -> DeviceSpec {
    device().parse().unwrap()
}
