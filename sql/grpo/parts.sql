-- Means on the held-out pieces over the run, each part of the reward before its weight.
SELECT step, replace(name, 'held_out/reward/', '') AS part, value
FROM rephraser_rl_metrics
WHERE name LIKE 'held_out/reward/%'
ORDER BY part, step
