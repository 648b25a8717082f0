-- Every measure of every answer.
SELECT
    variant,
    id,
    rephrased,
    fasttext_score(rephrased) - fasttext_score(original) AS quality,
    structure_preserved(original, rephrased) AS structure,
    length_ratio(original, rephrased) AS length_ratio
FROM answers
WHERE rephrased IS NOT NULL
