-- Share of pairs whose clean side scores higher; Spearman's rank correlation (ties share their mean rank) with DataMan's own scores.
-- `expected` scores tell apart what gets the same whole score.
SELECT 'clean above dirty' AS figure, avg(CASE WHEN clean > dirty THEN 1.0 ELSE 0.0 END) AS value, count(*) AS rows FROM pair_scores
UNION ALL
SELECT 'clean equal to dirty', avg(CASE WHEN clean = dirty THEN 1.0 ELSE 0.0 END), count(*) FROM pair_scores
UNION ALL
SELECT 'clean above dirty, expected', avg(CASE WHEN clean_expected > dirty_expected THEN 1.0 ELSE 0.0 END), count(*) FROM pair_scores
UNION ALL
SELECT 'rank correlation on real documents', corr(wanted_rank, found_rank), count(*)
FROM (
    SELECT rank() OVER (ORDER BY wanted) + (count(*) OVER (PARTITION BY wanted) - 1) / 2.0 AS wanted_rank,
           rank() OVER (ORDER BY found) + (count(*) OVER (PARTITION BY found) - 1) / 2.0 AS found_rank
    FROM document_scores
)
UNION ALL
SELECT 'rank correlation on real documents, expected', corr(wanted_rank, found_rank), count(*)
FROM (
    SELECT rank() OVER (ORDER BY wanted) + (count(*) OVER (PARTITION BY wanted) - 1) / 2.0 AS wanted_rank,
           rank() OVER (ORDER BY found_expected) + (count(*) OVER (PARTITION BY found_expected) - 1) / 2.0 AS found_rank
    FROM document_scores
)
