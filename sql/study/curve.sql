-- Perplexity on good held-out documents by unique tokens: more recycled documents against more organic ones, both from the arm `organic` on.
SELECT series, unique_tokens / 1000.0 AS thousands, mean, sd
FROM comparison
CROSS JOIN (VALUES ('organic alone'), ('organic and recycled')) AS both (series)
WHERE metric = 'perplexity_good'
  AND (arm = 'organic' OR (arm LIKE 'recycled%') = (series = 'organic and recycled'))
ORDER BY series, unique_tokens
