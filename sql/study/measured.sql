-- The figures of `runs`, one a row.
SELECT arm, run_seed, unique_tokens, 'perplexity_good' AS metric, perplexity_good AS value FROM runs
UNION ALL
SELECT arm, run_seed, unique_tokens, 'perplexity_clean', perplexity_clean FROM runs
UNION ALL
SELECT arm, run_seed, unique_tokens, 'perplexity_all', perplexity_all FROM runs
UNION ALL
SELECT arm, run_seed, unique_tokens, 'core', core FROM runs
UNION ALL
SELECT arm, run_seed, unique_tokens, 'accuracy', accuracy FROM runs
UNION ALL
SELECT arm, run_seed, unique_tokens, 'gold_loss', gold_loss FROM runs
