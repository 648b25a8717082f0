-- Rollouts that game the quality reward: it went up, and a faithfulness reward is lost.
SELECT step, prompt_id, sample, fasttext, structure, length, length_ratio, total, text
FROM rephraser_rl_rollouts
WHERE split = 'train' AND fasttext > 0.2 AND (structure = 0 OR length = 0 OR length_ratio < 0.3)
ORDER BY fasttext DESC, step, prompt_id, sample
LIMIT 1000
