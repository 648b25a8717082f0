//! The main job with the embedded models, on a few pages: tables that add up, the same text whatever the batch, readers that others made.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
};

const TABLES: &[&str] = &["organic", "organic_hq", "recycled", "scored", "recycled_hq", "mixture"];

/// The first short pages of the sample corpus.
fn pages(count: usize) -> Vec<String> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/corpus/pages-1.jsonl");
    let pages = fs::read_to_string(corpus).unwrap();
    pages.lines().filter(|line| line.len() < 1_600).take(count).map(str::to_owned).collect()
}

/// Writes `pages` as so many shards and recycles them in f32; `sets` are further `--set`s.
fn recycle(home: &Path, name: &str, pages: &[String], shards: usize, sets: &[&str]) -> String {
    let input = home.join(format!("{name}-input"));
    fs::create_dir_all(&input).unwrap();
    for (index, shard) in pages.chunks(pages.len().div_ceil(shards)).enumerate() {
        fs::write(input.join(format!("shard-{index}.jsonl")), shard.join("\n")).unwrap();
    }
    let location = home.join(name).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_repro"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).stdin(Stdio::null());
    command.args(["run", "pipelines/recycle.yaml", "--set", "models.rephraser.precision=f32"]);
    command.args(["--set", &format!("location={location}"), "--set", &format!("input={}/*.jsonl", input.display())]);
    for set in sets {
        command.args(["--set", set]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    location
}

/// Url → recycled text.
fn texts(location: &str) -> BTreeMap<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_repro"));
    command.stdin(Stdio::null()).args(["sql", "--format", "json"]);
    command.args([
        "--table",
        &format!("organic={location}/organic"),
        "--table",
        &format!("recycled={location}/recycled"),
    ]);
    command.arg("SELECT url, recycled.text FROM recycled JOIN organic ON organic_id = organic.id");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = String::from_utf8(output.stdout).unwrap();
    let rows = rows.lines().map(|line| serde_json::from_str::<BTreeMap<String, String>>(line).unwrap());
    rows.map(|mut row| (row.remove("url").unwrap(), row.remove("text").unwrap())).collect()
}

#[test]
fn the_text_does_not_depend_on_slots_or_shards() {
    let (home, pages) = (tempfile::tempdir().unwrap(), pages(8));
    // Drawn, not greedy: the random streams have to be the same too.
    let drawn = ["models.rephraser.temperature=1.0", "models.rephraser.top_p=0.9"];
    let one = recycle(home.path(), "one", &pages, 1, &[&drawn[..], &["models.rephraser.slots=1"]].concat());
    let many = recycle(home.path(), "many", &pages, 4, &[&drawn[..], &["models.rephraser.slots=16"]].concat());
    let (one, many) = (texts(&one), texts(&many));
    assert!(one.len() >= 6, "only {} of 8 pages were recycled", one.len());
    assert_eq!(one, many);
}

#[test]
fn every_table_adds_up() {
    let (home, mut pages) = (tempfile::tempdir().unwrap(), pages(6));
    pages.push("not json".to_owned());
    let location = recycle(home.path(), "run", &pages, 2, &[]);
    for table in TABLES {
        let manifest = fs::read(Path::new(&location).join(table).join("_manifest.json")).unwrap();
        let rows = &serde_json::from_slice::<serde_json::Value>(&manifest).unwrap()["rows"];
        let count = |name: &str| rows[name].as_u64().unwrap_or(0);
        assert_eq!(count("input"), count("kept") + count("dropped") + count("failed"), "{table}: {rows}");
        if *table == "organic" {
            assert_eq!(count("failed"), 1, "the line that is not JSON: {rows}");
        }
    }
}

#[test]
fn duckdb_and_pyarrow_read_every_table() {
    let python = std::env::var("REPRO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let probe = Command::new(&python).args(["-c", "import duckdb, pyarrow"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        eprintln!("skipped: {python} has no duckdb and pyarrow (set REPRO_PYTHON to one that has)");
        return;
    }
    let (home, pages) = (tempfile::tempdir().unwrap(), pages(4));
    let location = recycle(home.path(), "run", &pages, 1, &[]);
    let script = r#"
import sys, json, duckdb, pyarrow.parquet as pq
for table in sys.argv[2:]:
    home = f'{sys.argv[1]}/{table}'
    manifest = json.load(open(f'{home}/_manifest.json'))
    files = [home + '/' + file['path'] for file in manifest['files']]
    kept = manifest['rows']['kept']
    arrow = sum(pq.read_table(file).num_rows for file in files)
    names = [name for file in files[:1] for name in pq.read_schema(file).names]
    duck = duckdb.sql('select count(*) from read_parquet(?)', params=[files]).fetchall()[0][0] if files else 0
    assert arrow == duck == kept, (table, arrow, duck, kept)
    assert not files or names == [column['name'] for column in manifest['schema']], (table, names)
"#;
    let output = Command::new(&python).arg("-c").arg(script).arg(&location).args(TABLES).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
