-- Rollouts that game the quality reward: it went up, and a faithfulness reward is lost.
SELECT step, prompt_id, sample, dataman, structure, length, length_ratio, total, text
FROM rephraser_rl_rollouts
WHERE split = 'train' AND dataman >= 1 AND (structure = 0 OR length = 0 OR length_ratio < 0.3)
ORDER BY dataman DESC, step, prompt_id, sample
LIMIT 1000
