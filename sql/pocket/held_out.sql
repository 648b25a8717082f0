-- Pairs for measurement: other seeds, and what was inserted, so that the share of removed clutter can be counted.
SELECT
    id,
    pair['dirty'] AS prompt,
    pair['clean'] AS completion,
    pair['inserted'] AS inserted
FROM (
    SELECT id, corrupt_page(text, 700000000 + CAST(row_number() OVER (ORDER BY id) AS BIGINT)) AS pair
    FROM held_out_clean
)
LIMIT 1000
