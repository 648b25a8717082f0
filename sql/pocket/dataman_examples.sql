-- Texts with the fourteen scores that the pocket DataMan should give them, by a rubric of our own that can be counted: `amount` is how much running
-- text there is (5 from 200 characters on, 4 from 120, 3 from 60, 2 from 20, else 1), `share` which part of the letters is clutter.
--   accuracy, coherence          words out of order 1; breaks off in the middle 3; else 5
--   language consistency         by the share of clutter: none 5, up to 0.12 4, up to 0.35 3, up to 0.65 2, else 1
--   semantic density, knowledge novelty, creativity, grammatical diversity   the amount
--   topic focus, professionalism, style consistency   clutter before, behind, between the running text 1; else 5
--   structural standardization   by the number of clutter lines: none 5, one 4, up to three 3, up to six 2, else 1
--   originality                  says everything twice 3; else 5          sensitivity   5
--   overall                      the amount, less what the share takes off (0, or 2 to 5: any clutter costs two points),
--                                less 1 for breaking off, 2 for twice, 4 for words out of order
-- The scores are written in this order, so the overall score can be read off those before it. Without the amount and the broken texts, a rephraser
-- that is rewarded with the overall score learns to write little.
WITH kept AS (
    -- A text that ends within a sentence looks broken off without being cut: left out.
    SELECT * FROM pages WHERE NOT regexp_like(clean, '[^\n]{60}$') OR regexp_like(clean, '[.!?:;"”’)\]]$')
),
judged AS (
    SELECT concat(id, '-', variant) AS id, dirty AS text, clean AS running, share, lines, 'whole' AS kind,
           lines > 0 AND strpos(dirty, inserted[1]) = 1 AS before,
           lines > 0 AND right(dirty, character_length(inserted[lines])) = inserted[lines] AS behind
    FROM kept
    -- Little clutter is hard to see: all pages with at most one line, half of those with two, a quarter of those with up to five, an eighth of the others.
    WHERE share < 0.35 AND (lines <= 1 OR lines = 2 AND variant % 2 = 0) OR lines BETWEEN 3 AND 5 AND variant % 4 = 0 OR variant % 8 = 0
    UNION ALL
    SELECT concat(id, '-clean-', variant), clean AS text, clean AS running, 0.0, 0, 'whole', false, false
    FROM kept
    WHERE variant % 3 = 1 AND lines > 0
    UNION ALL
    SELECT concat(id, '-short-', variant), sentence AS text, sentence AS running, 0.0, 0, 'whole', false, false
    FROM (SELECT id, variant, regexp_match(clean, '^([^\n]{15,160}?[.!?])\s')[1] AS sentence FROM kept WHERE variant % 24 = 1)
    UNION ALL
    -- Breaks off within a word or behind it, after a fifth to nine tenths.
    SELECT concat(id, '-cut-', variant), piece AS text, piece AS running, 0.0, 0, 'cut', false, false
    FROM (
        SELECT id, variant,
               regexp_replace(substr(clean, 1, CAST(character_length(clean) * (0.2 + 0.07 * (variant % 11)) AS BIGINT)), '[^a-z]+$', '') AS piece
        FROM kept
        WHERE variant % 12 = 3
    )
    -- Behind a short line nobody can tell whether it was to go on.
    WHERE regexp_like(piece, '[^\n]{40}$')
    UNION ALL
    SELECT concat(id, '-twice-', variant), concat(clean, chr(10), clean), clean, 0.0, 0, 'twice', false, false
    FROM kept
    WHERE variant % 24 = 5 AND character_length(clean) < 900
    UNION ALL
    SELECT concat(id, '-mixed-', variant), string_agg(word, ' ' ORDER BY md5(concat(word, at))), string_agg(word, ' '), 0.0, 0, 'mixed', false, false
    FROM (
        SELECT id, variant, words[at] AS word, at
        FROM (
            SELECT id, variant, words, unnest(generate_series(1, CAST(array_length(words) AS BIGINT))) AS at
            FROM (SELECT id, variant, string_to_array(substr(clean, 1, 1200), ' ') AS words FROM kept WHERE variant % 36 = 11)
        )
    )
    GROUP BY id, variant
),
counted AS (
    SELECT id, text, kind, lines, before, behind,
           CASE WHEN character_length(running) >= 200 THEN 5 WHEN character_length(running) >= 120 THEN 4
                WHEN character_length(running) >= 60 THEN 3 WHEN character_length(running) >= 20 THEN 2 ELSE 1 END AS amount,
           CASE WHEN share <= 0.0 THEN 0 WHEN share <= 0.12 THEN 1 WHEN share <= 0.35 THEN 2 WHEN share <= 0.65 THEN 3 ELSE 4 END AS clutter,
           lines > CAST(before AS BIGINT) + CAST(behind AS BIGINT) AS between,
           CASE kind WHEN 'cut' THEN 1 WHEN 'twice' THEN 2 WHEN 'mixed' THEN 4 ELSE 0 END AS broken
    FROM judged
    WHERE character_length(trim(text)) > 0
)
SELECT id, text,
       make_array(
           CASE kind WHEN 'mixed' THEN 1 ELSE 5 END,
           CASE kind WHEN 'mixed' THEN 1 WHEN 'cut' THEN 3 ELSE 5 END,
           5 - clutter,
           amount,
           amount,
           CASE WHEN before THEN 1 ELSE 5 END,
           amount,
           CASE WHEN behind THEN 1 ELSE 5 END,
           CASE WHEN between THEN 1 ELSE 5 END,
           amount,
           CASE WHEN lines = 0 THEN 5 WHEN lines = 1 THEN 4 WHEN lines <= 3 THEN 3 WHEN lines <= 6 THEN 2 ELSE 1 END,
           CASE kind WHEN 'twice' THEN 3 ELSE 5 END,
           5,
           greatest(1, amount - CASE WHEN clutter = 0 THEN 0 ELSE clutter + 1 END - broken)
       ) AS scores
FROM counted
-- About as many examples with clutter as without: five sixteenths of the untouched pages, ten sixteenths of the other texts without clutter.
WHERE lines > 0 OR substr(md5(id), 1, 1) < CASE WHEN regexp_like(id, '-(clean|short|cut|twice|mixed)-') THEN 'a' ELSE '5' END
