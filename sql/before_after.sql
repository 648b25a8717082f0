-- One document before and after, for the eye: the shortest page that lost a quarter or more of its characters.
SELECT organic.text AS before, scored.text AS after
FROM scored
JOIN organic ON scored.organic_id = organic.id
WHERE length_ratio < 0.75
ORDER BY character_length(organic.text), organic.id
LIMIT 1
