//! The `repro` program: hands its arguments to [`repro::cli`] and exits with its code.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    repro::cli::main()
}
