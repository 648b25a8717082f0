//! Benchmarks: `cargo bench --bench bench -- NAME`, all of them without a name, tiny ones with `--smoke`, only the cases
//! that contain WORDS with `--case=WORDS`. Prints figures; asserts nothing about time.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

mod parts {
    pub mod generate;
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let smoke = arguments.iter().any(|a| a == "--smoke");
    let names: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| !a.starts_with("--")).collect();
    let case = arguments.iter().find_map(|a| a.strip_prefix("--case=")).unwrap_or_default();
    type Bench = fn(smoke: bool, case: &str) -> anyhow::Result<()>;
    let all: [(&str, Bench); 1] = [("generate", parts::generate::run)];
    for (name, bench) in all {
        if names.is_empty() || names.contains(&name) {
            println!("{name}");
            if let Err(error) = bench(smoke, case) {
                println!("  failed: {error:#}");
                std::process::exit(1);
            }
        }
    }
}
