-- Texts with the overall score that the pocket DataMan should give them. Clean text: 5. The same as a dirty page: less, by the share of
-- letters that are clutter. Real documents: DataMan's own score, for windows of them.
SELECT concat(id, '-', variant) AS id, pair['dirty'] AS text,
       CASE WHEN share <= 0.0 THEN 5 WHEN share <= 0.12 THEN 4 WHEN share <= 0.35 THEN 3 WHEN share <= 0.65 THEN 2 ELSE 1 END AS overall
FROM (
    SELECT id, variant, pair,
           CAST(coalesce(character_length(array_to_string(pair['inserted'], '')), 0) AS DOUBLE)
               / character_length(concat(pair['dirty'], ' ')) AS share
    FROM (
        SELECT id, variant, corrupt_page(text, 31 + variant * 1000003 + row) AS pair
        FROM (SELECT id, text, CAST(row_number() OVER (ORDER BY id) AS BIGINT) AS row FROM clean)
        CROSS JOIN (SELECT value AS variant FROM generate_series(1, $variants))
    )
)
UNION ALL
SELECT concat(id, '-clean-', variant) AS id, pair['clean'] AS text, 5 AS overall
FROM (
    SELECT id, variant, corrupt_page(text, 31 + variant * 1000003 + row) AS pair
    FROM (SELECT id, text, CAST(row_number() OVER (ORDER BY id) AS BIGINT) AS row FROM clean)
    CROSS JOIN (SELECT value AS variant FROM generate_series(1, $variants))
)
WHERE pair['dirty'] <> pair['clean'] AND character_length(pair['clean']) > 20
UNION ALL
SELECT concat(id, '-', copy, '-', at) AS id, piece AS text, CAST(dataman_score AS BIGINT) AS overall
FROM (
    SELECT id, dataman_score, copy, at, substr(text, 1 + at * 600, 900) AS piece
    FROM documents
    CROSS JOIN (SELECT value AS at FROM generate_series(0, 3))
    CROSS JOIN (SELECT value AS copy FROM generate_series(1, $document_copies))
    WHERE source_row < $train_documents
)
-- Most real documents score 4: the rarer the score, the more copies.
WHERE character_length(trim(piece)) >= 80 AND copy <= CASE WHEN dataman_score >= 4 THEN 1 WHEN dataman_score >= 3 THEN 3 ELSE 9 END
