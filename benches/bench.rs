//! Benchmarks: `cargo bench --bench bench -- NAME`, all of them without a name, tiny ones with `--smoke`. Prints figures;
//! asserts nothing about time.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

mod parts {
    pub mod generate;
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let smoke = arguments.iter().any(|a| a == "--smoke");
    let names: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| !a.starts_with("--")).collect();
    type Bench = fn(smoke: bool) -> anyhow::Result<()>;
    let all: [(&str, Bench); 1] = [("generate", parts::generate::run)];
    for (name, bench) in all {
        if names.is_empty() || names.contains(&name) {
            println!("{name}");
            if let Err(error) = bench(smoke) {
                println!("  failed: {error:#}");
                std::process::exit(1);
            }
        }
    }
}
