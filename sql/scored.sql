-- Measures every pair of organic and recycled document. Length and structure are two of the paper's faithfulness rewards (section 2).
SELECT
    recycled.*,
    fasttext_score(recycled.text) AS fasttext_score,
    fasttext_score(organic.text) AS organic_fasttext_score,
    length_ratio(organic.text, recycled.text) AS length_ratio,
    structure_preserved(organic.text, recycled.text) AS structure_preserved
FROM recycled
JOIN organic ON recycled.organic_id = organic.id
