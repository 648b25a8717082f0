-- The mean of each measure, organic against recycled, over the table that sql/rewards.sql makes. An organic document compared with itself has a
-- BERTScore of 1 and keeps its structure and its length.
SELECT 'DataMan, 1 to 5' AS measure, avg(organic_dataman) AS organic, avg(dataman) AS recycled, count(dataman) AS documents
FROM scored
UNION ALL
SELECT 'DataMan is 5, share', avg((organic_dataman = 5)::int), avg((dataman = 5)::int), count(dataman) FROM scored
UNION ALL
SELECT 'BERTScore F1', 1.0, avg(bertscore), count(bertscore) FROM scored
UNION ALL
SELECT 'BERTScore reached, share', 1.0, avg(reward_bertscore), count(reward_bertscore) FROM scored
UNION ALL
SELECT 'structure kept, share', 1.0, avg(reward_structure), count(reward_structure) FROM scored
UNION ALL
SELECT 'length ratio', 1.0, avg(length_ratio), count(length_ratio) FROM scored
UNION ALL
SELECT 'length within limit, share', 1.0, avg(reward_length), count(reward_length) FROM scored
UNION ALL
SELECT 'quality classifier', avg(organic_fasttext_score), avg(fasttext_score), count(fasttext_score) FROM scored
UNION ALL
SELECT 'total reward', NULL, avg(repro_reward), count(repro_reward) FROM scored
