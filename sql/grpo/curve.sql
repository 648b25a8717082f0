-- The run at a glance: one row a measurement on the held-out documents, with the training figures of the same step.
SELECT
    step,
    max(value) FILTER (WHERE name = 'held_out/reward') AS held_out_reward,
    max(value) FILTER (WHERE name = 'reward') AS reward,
    max(value) FILTER (WHERE name = 'kl') AS kl,
    max(value) FILTER (WHERE name = 'entropy') AS entropy,
    max(value) FILTER (WHERE name = 'completion_length') AS completion_length,
    max(value) FILTER (WHERE name = 'flat_groups') AS flat_groups,
    max(wall_seconds) AS wall_seconds
FROM rephraser_rl_metrics
GROUP BY step
HAVING max(value) FILTER (WHERE name = 'held_out/reward') IS NOT NULL
ORDER BY step
