-- One row a variant: the paper's table 3, at pocket scale. `answered` is the share of documents that were rephrased at all; the others are in
-- `failed`, with the reason.
SELECT
    variant,
    count(*) AS documents,
    CAST(count(*) AS DOUBLE) / max(asked) AS answered,
    avg(quality) AS quality,
    avg(CAST(structure AS INT)) AS structure,
    avg(CASE WHEN length_ratio <= 1.25 THEN 1.0 ELSE 0.0 END) AS length,
    avg(length_ratio) AS length_ratio,
    avg(3.0 * quality + CAST(structure AS INT) + CASE WHEN length_ratio <= 1.25 THEN 1.0 ELSE 0.0 END) AS total
FROM scored
CROSS JOIN (SELECT count(*) AS asked FROM rl_held_out)
GROUP BY variant
ORDER BY total DESC
