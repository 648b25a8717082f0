-- One row a model. Perplexities are exp(mean loss of a token) on documents never trained on; `core` is the mean centered accuracy of the tasks that
-- have a file, `accuracy` their mean accuracy, `gold_loss` the mean loss of a token of the right answers.
SELECT
    scores.arm,
    CAST(regexp_replace(scores.model, '^.*_', '') AS BIGINT) AS run_seed,
    unique_tokens,
    CAST($train_tokens AS DOUBLE) / unique_tokens AS passes,
    perplexity_good,
    perplexity_clean,
    perplexity_all,
    core,
    accuracy,
    gold_loss,
    tasks
FROM (
    SELECT
        model,
        regexp_replace(model, '^base_(.*)_[0-9]+$', '\1') AS arm,
        exp(max(CASE WHEN task LIKE '%_good' THEN loss END)) AS perplexity_good,
        exp(max(CASE WHEN task LIKE '%_clean' THEN loss END)) AS perplexity_clean,
        exp(max(CASE WHEN task LIKE '%_all' THEN loss END)) AS perplexity_all
    FROM losses
    GROUP BY model
) AS scores
JOIN (
    SELECT model, avg(centered) AS core, avg(accuracy) AS accuracy, avg(loss) AS gold_loss, count(centered) AS tasks
    FROM scored_tasks
    WHERE core
    GROUP BY model
) AS task_scores ON task_scores.model = scores.model
JOIN (SELECT arm, sum(tokens) AS unique_tokens FROM mixtures GROUP BY arm) AS sizes ON sizes.arm = scores.arm
ORDER BY unique_tokens, scores.arm, run_seed
