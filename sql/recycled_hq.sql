-- Keeps recycled documents that pass the quality classifier and did not grow beyond the paper's length limit (1.25).
SELECT *
FROM scored
WHERE fasttext_score >= $hq_threshold
  AND length_ratio <= $max_length_ratio
