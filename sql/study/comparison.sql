-- Mean and sample standard deviation over the seeds, for every arm and figure; `difference` is the mean of the differences to the arm `organic` of
-- the same seed, `difference_sd` their standard deviation, `better` the number of seeds that are better than it (lower for losses).
SELECT
    run.metric,
    run.arm,
    max(run.unique_tokens) AS unique_tokens,
    count(*) AS seeds,
    avg(run.value) AS mean,
    stddev(run.value) AS sd,
    avg(run.value - base.value) AS difference,
    stddev(run.value - base.value) AS difference_sd,
    sum(CASE WHEN (run.value - base.value) * CASE WHEN run.metric IN ('core', 'accuracy') THEN 1 ELSE -1 END > 0 THEN 1 ELSE 0 END) AS better
FROM measured AS run
JOIN measured AS base ON base.metric = run.metric AND base.run_seed = run.run_seed AND base.arm = 'organic'
GROUP BY run.metric, run.arm
ORDER BY run.metric, unique_tokens, run.arm
