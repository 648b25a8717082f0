//! Benchmarks: `cargo bench --bench bench -- NAME`, all of them without a name, tiny ones with `--smoke`, only the cases
//! that contain WORDS with `--case=WORDS`. Prints figures; asserts nothing about time.
#![expect(clippy::print_stdout, reason = "a benchmark prints")]

mod parts {
    pub mod bertscore;
    pub mod fasttext;
    pub mod functions;
    pub mod generate;
    pub mod gpu_generate;
    pub mod gpu_grpo;
    pub mod gpu_score;
    pub mod grpo;
    pub mod pack;
    pub mod pretrain;
}

/// What the command line asks for.
pub struct Options {
    /// Tiny sizes, one repetition: only shows that the benchmark runs.
    pub smoke: bool,
    /// Only cases whose name contains this.
    pub case: String,
    /// `--work=REQUESTS,PROMPT,NEW` instead of the benchmark's own.
    pub work: Vec<usize>,
    /// `--keep=DIRECTORY` for what a peer is to work on.
    pub keep: String,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let value = |key: &str| arguments.iter().find_map(|a| a.strip_prefix(key)).unwrap_or_default().to_owned();
    let options = Options {
        smoke: arguments.iter().any(|a| a == "--smoke"),
        case: value("--case="),
        keep: value("--keep="),
        work: value("--work=").split(',').filter_map(|n| n.parse().ok()).collect(),
    };
    let names: Vec<&str> = arguments.iter().map(String::as_str).filter(|a| !a.starts_with("--")).collect();
    type Bench = fn(&Options) -> anyhow::Result<()>;
    let all: [(&str, Bench); 10] = [
        ("bertscore", parts::bertscore::run),
        ("fasttext", parts::fasttext::run),
        ("functions", parts::functions::run),
        ("generate", parts::generate::run),
        ("gpu-generate", parts::gpu_generate::run),
        ("gpu-grpo", parts::gpu_grpo::run),
        ("gpu-score", parts::gpu_score::run),
        ("grpo", parts::grpo::run),
        ("pack", parts::pack::run),
        ("pretrain", parts::pretrain::run),
    ];
    for (name, bench) in all {
        if names.is_empty() || names.contains(&name) {
            println!("{name}");
            if let Err(error) = bench(&options) {
                println!("  failed: {error:#}");
                std::process::exit(1);
            }
        }
    }
}
