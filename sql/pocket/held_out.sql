-- Pages for measurement: texts that were not trained on, other seeds, and what was inserted.
SELECT
    id,
    pair['dirty'] AS dirty,
    pair['clean'] AS clean,
    pair['inserted'] AS inserted,
    '' AS prompt,
    edit_example(pair['dirty'], pair['clean']) AS completion
FROM (
    SELECT concat(id, '-', variant) AS id, corrupt_page(text, 700000000 + variant * 1000003 + row) AS pair
    FROM (SELECT id, text, CAST(row_number() OVER (ORDER BY id) AS BIGINT) AS row FROM held_out_clean)
    CROSS JOIN (SELECT value AS variant FROM generate_series(1, $held_out_variants))
)
