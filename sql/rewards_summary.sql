-- The mean of each measure, organic against recycled, over the table that sql/rewards.sql makes. An organic document compared with itself has a
-- BERTScore of 1 and keeps its structure and its length. A part that is switched off has no documents.
SELECT measure, organic, recycled, documents
FROM (
    SELECT 1 AS place, 'DataMan, 1 to 5' AS measure, avg(organic_dataman) AS organic, avg(dataman) AS recycled, count(dataman) AS documents
    FROM scored
    UNION ALL
    SELECT 2, 'DataMan is 5, share', avg((organic_dataman = 5)::int), avg((dataman = 5)::int), count(dataman) FROM scored
    UNION ALL
    SELECT 3, 'BERTScore F1', 1.0, avg(bertscore), count(bertscore) FROM scored
    UNION ALL
    SELECT 4, 'BERTScore reached, share', 1.0, avg(reward_bertscore), count(reward_bertscore) FROM scored
    UNION ALL
    SELECT 5, 'structure kept, share', 1.0, avg(reward_structure), count(reward_structure) FROM scored
    UNION ALL
    SELECT 6, 'length ratio', 1.0, avg(length_ratio), count(length_ratio) FROM scored
    UNION ALL
    SELECT 7, 'length within limit, share', 1.0, avg(reward_length), count(reward_length) FROM scored
    UNION ALL
    SELECT 8, 'quality classifier', avg(organic_fasttext_score), avg(fasttext_score), count(fasttext_score) FROM scored
    UNION ALL
    SELECT 9, 'total reward', NULL, avg(repro_reward), count(repro_reward) FROM scored
)
ORDER BY place
