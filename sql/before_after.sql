-- One document before and after, for the eye: the short page that scores best after recycling. Lines are wrapped at 64 characters.
SELECT
    regexp_replace(organic.text, '([^\n]{40,64}) ', '\1' || chr(10), 'g') AS before,
    regexp_replace(scored.text, '([^\n]{40,64}) ', '\1' || chr(10), 'g') AS after
FROM scored
JOIN organic ON scored.organic_id = organic.id
WHERE character_length(organic.text) BETWEEN 300 AND 1500 AND length_ratio BETWEEN 0.4 AND 0.95 AND structure_preserved
ORDER BY scored.fasttext_score DESC, organic.id
LIMIT 1
