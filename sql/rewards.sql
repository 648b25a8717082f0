-- Measures every pair of organic and recycled document by all rewards of the paper (section 2) and by the selector.
-- Which models measure, which parts count and how much: section `rewards:` of the pipeline.
SELECT
    scored.* EXCLUDE (organic_text, reward),
    reward['total'] AS repro_reward,
    reward['rephrased_dataman'] AS dataman,
    reward['original_dataman'] AS organic_dataman,
    reward['f1'] AS bertscore,
    reward['length_ratio'] AS length_ratio,
    reward['structure'] = 1 AS structure_preserved,
    reward['dataman'] AS reward_dataman,
    reward['bertscore'] AS reward_bertscore,
    reward['structure'] AS reward_structure,
    reward['length'] AS reward_length,
    reward['format'] AS reward_format
FROM (
    SELECT
        *,
        fasttext_score(text) AS fasttext_score,
        fasttext_score(organic_text) AS organic_fasttext_score,
        repro_reward(organic_text, text) AS reward
    FROM pairs
) AS scored
