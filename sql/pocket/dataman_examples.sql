-- Texts with the overall score that the pocket DataMan should give them. The ceiling is how much running text there is, in characters: from
-- 200 on 5, from 120 on 4, from 60 on 3, from 20 on 2, else 1. Taken off, down to 1: for clutter 1 to 4, by its share of the letters; for a text that
-- breaks off 1; for one that says everything twice 2; words out of order get 1. Without the ceiling and the broken texts a rephraser that is
-- rewarded with this score learns to write little. Real documents: DataMan's own score, for windows of them.
WITH texts AS (
    SELECT id, text, CAST(row_number() OVER (ORDER BY id) AS BIGINT) AS row FROM clean
),
pages AS (
    SELECT id, variant, pair['clean'] AS clean, pair['dirty'] AS dirty,
           CAST(coalesce(character_length(array_to_string(pair['inserted'], '')), 0) AS DOUBLE)
               / character_length(concat(pair['dirty'], ' ')) AS share
    FROM (
        SELECT id, variant, corrupt_page(text, 31 + variant * 1000003 + row) AS pair
        FROM texts
        CROSS JOIN (SELECT value AS variant FROM generate_series(1, $variants))
    )
),
judged AS (
    SELECT concat(id, '-', variant) AS id, dirty AS text, clean AS running,
           CASE WHEN share <= 0.0 THEN 0 WHEN share <= 0.12 THEN 1 WHEN share <= 0.35 THEN 2 WHEN share <= 0.65 THEN 3 ELSE 4 END AS off
    FROM pages
    UNION ALL
    SELECT concat(id, '-clean-', variant), clean AS text, clean AS running, 0
    FROM pages
    WHERE variant % 2 = 0 AND dirty <> clean
    UNION ALL
    -- Its first sentence.
    SELECT concat(id, '-short-', variant), sentence AS text, sentence AS running, 0
    FROM (SELECT id, variant, regexp_match(clean, '^([^\n]{15,160}?[.!?])\s')[1] AS sentence FROM pages WHERE variant % 6 = 1)
    UNION ALL
    -- Broken off within a word, after a fifth to nine tenths.
    SELECT concat(id, '-cut-', variant), piece AS text, piece AS running, 1
    FROM (
        SELECT id, variant, regexp_replace(substr(clean, 1, CAST(character_length(clean) * (0.2 + 0.07 * (variant % 11)) AS BIGINT)), '[^a-z]+$', '') AS piece
        FROM pages
    )
    WHERE variant % 4 = 3
    UNION ALL
    SELECT concat(id, '-twice-', variant), concat(clean, chr(10), clean), clean, 2
    FROM pages
    WHERE variant % 12 = 5 AND character_length(clean) < 900
    UNION ALL
    SELECT concat(id, '-mixed-', variant), string_agg(word, ' ' ORDER BY md5(concat(word, at))), '', 4
    FROM (
        SELECT id, variant, words[at] AS word, at
        FROM (
            SELECT id, variant, words, unnest(generate_series(1, CAST(array_length(words) AS BIGINT))) AS at
            FROM (SELECT id, variant, string_to_array(substr(clean, 1, 1200), ' ') AS words FROM pages WHERE variant % 12 = 11)
        )
    )
    GROUP BY id, variant
)
SELECT id, text,
       greatest(
           1,
           CASE WHEN character_length(running) >= 200 THEN 5 WHEN character_length(running) >= 120 THEN 4
                WHEN character_length(running) >= 60 THEN 3 WHEN character_length(running) >= 20 THEN 2 ELSE 1 END - off
       ) AS overall
FROM judged
WHERE character_length(trim(text)) > 0
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
