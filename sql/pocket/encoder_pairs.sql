-- Pairs whose meaning is the same, and pairs whose meaning is not, for an encoder's threshold. Faithful: a page and its own clean text, and the
-- clean text itself as a page with little clutter. Unfaithful: a page and the clean text of another page, the first half of its own,
-- half of its own with half of another's, its own words in alphabetical order.
WITH pages AS (
    SELECT *, coalesce(lead(clean) OVER (ORDER BY md5(id)), first) AS other
    FROM (
        SELECT id, dirty, clean, first_value(clean) OVER (ORDER BY md5(id)) AS first,
               CAST(character_length(array_to_string(inserted, '')) AS DOUBLE) / character_length(dirty) AS clutter
        FROM held_out
        WHERE dirty <> clean AND array_length(inserted) > 0 AND character_length(clean) >= 200
    )
)
SELECT concat(id, ' own') AS id, CASE WHEN clutter <= 0.35 THEN 'own, a third clutter at most' ELSE 'own, more clutter' END AS kind,
       true AS faithful, dirty AS original, clean AS rephrased
FROM pages
UNION ALL
SELECT concat(id, ' other'), 'of another page', false, dirty, other FROM pages
UNION ALL
SELECT concat(id, ' half'), 'first half of it', false, clean, substr(clean, 1, character_length(clean) / 2) FROM pages
UNION ALL
SELECT concat(id, ' mixed'), 'half of it, half of another', false, clean,
       concat(substr(clean, 1, character_length(clean) / 2), chr(10), substr(other, 1, character_length(clean) / 2))
FROM pages
UNION ALL
SELECT concat(id, ' sorted'), 'its words in alphabetical order', false, clean, array_to_string(array_sort(string_to_array(clean, ' ')), ' ')
FROM pages
