-- Keeps recycled documents that pass the quality classifier, did not grow beyond the paper's length limit (1.25), still mean what their
-- source means (BERTScore at the threshold of `rewards:`) and score no lower with DataMan. A part that is switched off keeps everything.
SELECT *
FROM scored
WHERE fasttext_score >= $hq_threshold
  AND length_ratio <= $max_length_ratio
  AND coalesce(reward_bertscore, 1) = 1
  AND coalesce(reward_dataman, 0) >= 0
