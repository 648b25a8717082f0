-- What the run brought: means on the held-out pieces before the first step and after the last.
SELECT part, min(before) AS before, min(after) AS after, min(after) - min(before) AS change
FROM (
    SELECT
        replace(name, 'held_out/', '') AS part,
        first_value(value) OVER (PARTITION BY name ORDER BY step) AS before,
        first_value(value) OVER (PARTITION BY name ORDER BY step DESC) AS after
    FROM rephraser_rl_metrics
    WHERE name LIKE 'held_out/%'
)
GROUP BY part
ORDER BY part
