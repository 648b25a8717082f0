-- What the rephraser learns from: every clean text becomes $variants different pages, and the chunks of our own pages come with
-- the clutter that their authors marked.
SELECT id, '' AS prompt, edit_example(dirty, clean) AS completion
FROM (
    SELECT concat(id, '-', variant) AS id, pair['dirty'] AS dirty, pair['clean'] AS clean
    FROM (
        SELECT id, variant, corrupt_page(text, variant * 1000003 + row) AS pair
        FROM (SELECT id, text, CAST(row_number() OVER (ORDER BY id) AS BIGINT) AS row FROM clean)
        CROSS JOIN (SELECT value AS variant FROM generate_series(1, $variants))
    )
    UNION ALL
    SELECT concat(id, '-', copy) AS id, text AS dirty, clean
    FROM marked
    CROSS JOIN (SELECT value AS copy FROM generate_series(1, $marked_copies))
)
