-- Share of pairs whose clean side scores higher; Spearman's rank correlation (ties share their mean rank) with DataMan's own scores.
SELECT 'clean above dirty' AS figure, avg(CASE WHEN clean > dirty THEN 1.0 ELSE 0.0 END) AS value, count(*) AS rows FROM pair_scores
UNION ALL
SELECT 'clean equal to dirty' AS figure, avg(CASE WHEN clean = dirty THEN 1.0 ELSE 0.0 END) AS value, count(*) AS rows FROM pair_scores
UNION ALL
SELECT 'rank correlation on real documents' AS figure, corr(wanted_rank, found_rank) AS value, count(*) AS rows
FROM (
    SELECT rank() OVER (ORDER BY wanted) + (count(*) OVER (PARTITION BY wanted) - 1) / 2.0 AS wanted_rank,
           rank() OVER (ORDER BY found) + (count(*) OVER (PARTITION BY found) - 1) / 2.0 AS found_rank
    FROM document_scores
)
