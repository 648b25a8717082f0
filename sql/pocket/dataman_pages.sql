-- Pages made of each clean text, each with its own clutter: how many clutter lines, which share of its letters.
SELECT id, variant, pair['clean'] AS clean, trim(pair['dirty']) AS dirty, pair['inserted'] AS inserted,
       CAST(coalesce(array_length(pair['inserted']), 0) AS BIGINT) AS lines,
       CAST(coalesce(character_length(array_to_string(pair['inserted'], '')), 0) AS DOUBLE)
           / character_length(concat(pair['dirty'], ' ')) AS share
FROM (
    SELECT id, variant, corrupt_page(text, 57 + variant * 1000003 + row) AS pair
    FROM (SELECT id, text, CAST(row_number() OVER (ORDER BY id) AS BIGINT) AS row FROM clean)
    CROSS JOIN (SELECT value AS variant FROM generate_series(1, $variants))
)
