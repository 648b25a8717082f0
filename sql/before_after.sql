-- One document before and after, for the eye: the short page whose quality score rose most.
SELECT organic.text AS before, scored.text AS after
FROM scored
JOIN organic ON scored.organic_id = organic.id
WHERE character_length(organic.text) BETWEEN 300 AND 1500 AND length_ratio BETWEEN 0.4 AND 0.95
ORDER BY scored.fasttext_score - organic_fasttext_score DESC, organic.id
LIMIT 1
