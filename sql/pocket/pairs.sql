-- Dirty chunk and clean chunk: every clean text becomes $variants different pages.
SELECT
    concat(id, '-', variant) AS id,
    pair['dirty'] AS prompt,
    pair['clean'] AS completion
FROM (
    SELECT id, variant, corrupt_page(text, variant * 1000003 + row) AS pair
    FROM (SELECT id, text, CAST(row_number() OVER (ORDER BY id) AS BIGINT) AS row FROM clean)
    CROSS JOIN (SELECT value AS variant FROM generate_series(1, $variants))
)
