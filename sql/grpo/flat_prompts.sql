-- Prompts whose completions always had one and the same reward: nothing was ever learned from them.
SELECT prompt_id, count(*) AS rollouts, count(DISTINCT step) AS steps, min(total) AS total
FROM rephraser_rl_rollouts
WHERE split = 'train'
GROUP BY prompt_id
HAVING max(total) = min(total)
ORDER BY rollouts DESC, prompt_id
