//! The tasks as data: the 22 of the paper, and commonsense_qa, which it leaves out. Facts: reference section 8.2. Does not
//! read the files.

/// One task. All figures are those of the harness's own configuration (DCLM's `mmlu_and_lowvar.yaml`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Task {
    /// The name that results are reported under.
    pub label: &'static str,
    /// The mean that it takes part in.
    pub group: Group,
    /// How an item is scored.
    pub kind: Kind,
    /// Solved examples before each item.
    pub shots: usize,
    /// Its file below the harness's `local_data` directory.
    pub file: &'static str,
    /// What stands between a context and its answer.
    pub delimiter: &'static str,
    /// Accuracy of a guess in percent, as DCLM had it when the paper was written.
    pub baseline_v1: f64,
    /// The same after DCLM's correction of September 2025.
    pub baseline_v2: f64,
    /// Whether the score is the mean over the categories of its items, each with few-shot examples of its own.
    pub categories: bool,
    /// Whether it is one of the 22 whose mean is Core.
    pub core: bool,
}

/// The paper's five groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Commonsense reasoning.
    Commonsense,
    /// Language understanding.
    Language,
    /// Reading comprehension.
    Reading,
    /// Symbolic problem solving.
    Symbolic,
    /// World knowledge.
    World,
}

impl Group {
    /// As it stands in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Commonsense => "commonsense",
            Self::Language => "language",
            Self::Reading => "reading",
            Self::Symbolic => "symbolic",
            Self::World => "world",
        }
    }
}

/// How an item is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The choice whose tokens have the lowest mean cross-entropy after the query.
    MultipleChoice,
    /// The context after which the one continuation has the lowest mean cross-entropy.
    Schema,
    /// Right if each token of the continuation is the most likely one.
    LanguageModeling,
}

impl Kind {
    /// The fields of an item, for messages.
    pub fn fields(self) -> &'static str {
        match self {
            Self::MultipleChoice => "query, choices, gold",
            Self::Schema => "context_options, continuation, gold",
            Self::LanguageModeling => "context, continuation",
        }
    }
}

/// Which of DCLM's two lists of random baselines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baselines {
    /// As in the paper.
    #[default]
    V1,
    /// Corrected in September 2025. Core comes out about 0.01 lower: do not compare it with the paper's.
    V2,
}

impl Baselines {
    /// As it stands in the tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

impl Task {
    /// Accuracy of a guess, 0 to 1.
    pub fn baseline(&self, baselines: Baselines) -> f64 {
        match baselines {
            Baselines::V1 => self.baseline_v1 / 100.0,
            Baselines::V2 => self.baseline_v2 / 100.0,
        }
    }

    /// The file's name without its directories.
    pub fn file_name(&self) -> &'static str {
        self.file.rsplit('/').next().unwrap_or(self.file)
    }
}

const SPACE: &str = " ";
const ANSWER: &str = "\nAnswer: ";

const fn task(label: &'static str, group: Group, kind: Kind, shots: usize, file: &'static str, baseline: f64) -> Task {
    Task {
        label,
        group,
        kind,
        shots,
        file,
        delimiter: SPACE,
        baseline_v1: baseline,
        baseline_v2: baseline,
        categories: false,
        core: true,
    }
}

const fn answer(task: Task) -> Task {
    Task { delimiter: ANSWER, ..task }
}

const fn categories(task: Task) -> Task {
    Task { categories: true, ..task }
}

const fn corrected(task: Task, baseline_v2: f64) -> Task {
    Task { baseline_v2, ..task }
}

const fn outside_core(task: Task) -> Task {
    Task { core: false, ..task }
}

use Group::{Commonsense, Language, Reading, Symbolic, World};
use Kind::{LanguageModeling as Lm, MultipleChoice as Mc, Schema};

/// Every task, in the order of the reports.
pub const TASKS: &[Task] = &[
    task("copa", Commonsense, Mc, 0, "commonsense_reasoning/copa.jsonl", 50.0),
    answer(task("piqa", Commonsense, Mc, 10, "commonsense_reasoning/piqa.jsonl", 50.0)),
    task("openbook_qa", Commonsense, Mc, 0, "commonsense_reasoning/openbook_qa.jsonl", 25.0),
    task("hellaswag_zeroshot", Language, Mc, 0, "language_understanding/hellaswag.jsonl", 25.0),
    task("hellaswag", Language, Mc, 10, "language_understanding/hellaswag.jsonl", 25.0),
    task("lambada_openai", Language, Lm, 0, "language_understanding/lambada_openai.jsonl", 0.0),
    task("winograd", Language, Schema, 0, "language_understanding/winograd_wsc.jsonl", 50.0),
    task("winogrande", Language, Schema, 0, "language_understanding/winogrande.jsonl", 50.0),
    corrected(
        task(
            "bigbench_language_identification",
            Language,
            Mc,
            10,
            "language_understanding/bigbench_language_identification.jsonl",
            9.1,
        ),
        25.0,
    ),
    task("squad", Reading, Lm, 10, "reading_comprehension/squad.jsonl", 0.0),
    task("coqa", Reading, Lm, 0, "reading_comprehension/coqa.jsonl", 0.0),
    answer(task("boolq", Reading, Mc, 10, "reading_comprehension/boolq.jsonl", 62.0)),
    task("bigbench_dyck_languages", Symbolic, Lm, 10, "symbolic_problem_solving/bigbench_dyck_languages.jsonl", 0.0),
    corrected(task("agi_eval_lsat_ar", Symbolic, Mc, 3, "symbolic_problem_solving/agi_eval_lsat_ar.jsonl", 20.0), 25.0),
    task("bigbench_cs_algorithms", Symbolic, Lm, 10, "symbolic_problem_solving/bigbench_cs_algorithms.jsonl", 0.0),
    task("bigbench_operators", Symbolic, Lm, 10, "symbolic_problem_solving/bigbench_operators.jsonl", 0.0),
    task(
        "bigbench_repeat_copy_logic",
        Symbolic,
        Lm,
        10,
        "symbolic_problem_solving/bigbench_repeat_copy_logic.jsonl",
        0.0,
    ),
    categories(answer(task("jeopardy", World, Lm, 10, "world_knowledge/jeopardy_all.jsonl", 0.0))),
    task("bigbench_qa_wikidata", World, Lm, 10, "world_knowledge/bigbench_qa_wikidata.jsonl", 0.0),
    answer(task("arc_easy", World, Mc, 10, "world_knowledge/arc_easy.jsonl", 25.0)),
    answer(task("arc_challenge", World, Mc, 10, "world_knowledge/arc_challenge.jsonl", 25.0)),
    categories(answer(task("mmlu_fewshot", World, Mc, 5, "world_knowledge/mmlu.jsonl", 25.0))),
    outside_core(corrected(
        task("commonsense_qa", Commonsense, Mc, 10, "commonsense_reasoning/commonsense_qa.jsonl", 20.0),
        40.3,
    )),
];

/// The task of that label.
pub fn find(label: &str) -> Option<&'static Task> {
    TASKS.iter().find(|task| task.label == label)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference section 8.2: 22 tasks in groups of 3, 6, 3, 5, 5; two baselines differ between the versions.
    #[test]
    fn core_is_made_of_22_tasks_in_five_groups() {
        let core: Vec<&Task> = TASKS.iter().filter(|t| t.core).collect();
        let size = |group| core.iter().filter(|t| t.group == group).count();
        assert_eq!([Commonsense, Language, Reading, Symbolic, World].map(size), [3, 6, 3, 5, 5]);
        let differ: Vec<&str> = core.iter().filter(|t| t.baseline_v1 != t.baseline_v2).map(|t| t.label).collect();
        assert_eq!(differ, ["bigbench_language_identification", "agi_eval_lsat_ar"]);
        // 0.159 / (1 - 0.091) and the like: what the correction takes from a Core of mean accuracy a is linear in a.
        assert_eq!(find("hellaswag").map(|t| t.shots), Some(10));
        assert_eq!(find("hellaswag_zeroshot").map(|t| t.file), find("hellaswag").map(|t| t.file));
        assert!(find("commonsense_qa").is_some_and(|t| !t.core));
    }

    #[test]
    fn labels_are_unique_and_categories_are_two_tasks() {
        for (i, task) in TASKS.iter().enumerate() {
            assert_eq!(TASKS.iter().position(|t| t.label == task.label), Some(i));
        }
        let split: Vec<&str> = TASKS.iter().filter(|t| t.categories).map(|t| t.label).collect();
        assert_eq!(split, ["jeopardy", "mmlu_fewshot"]);
    }
}
