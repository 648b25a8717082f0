-- One row a variant: the paper's table 3, at pocket scale. `answered` is the share of documents that were rephrased at all; the others are in
-- `failed`, with the reason.
SELECT
    variant,
    count(*) AS documents,
    CAST(count(*) AS DOUBLE) / max(asked) AS answered,
    avg(quality) AS quality,
    avg(selector) AS selector,
    avg(meaning) AS meaning,
    avg(structure) AS structure,
    avg(length) AS length,
    avg(f1) AS f1,
    avg(length_ratio) AS length_ratio,
    avg(3.0 * quality + meaning + structure + length) AS total
FROM scored
CROSS JOIN (SELECT count(*) AS asked FROM rl_held_out)
GROUP BY variant
ORDER BY total DESC
