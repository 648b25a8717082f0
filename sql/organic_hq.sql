-- The best organic documents: those that the quality classifier scores at or above the threshold (paper: 0.018112).
SELECT *, fasttext_score(text) AS fasttext_score
FROM organic
WHERE fasttext_score(text) >= $hq_threshold
