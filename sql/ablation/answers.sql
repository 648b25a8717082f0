-- The held-out pieces as each variant rephrases them.
SELECT 'prompting' AS variant, id, text AS original, rephrase(text, 'rephraser') AS rephrased FROM rl_held_out
UNION ALL
SELECT 'sft' AS variant, id, text AS original, rephrase(text, 'sft') AS rephrased FROM rl_held_out
UNION ALL
SELECT 'grpo, quality only' AS variant, id, text AS original, rephrase(text, 'grpo_quality') AS rephrased FROM rl_held_out
UNION ALL
SELECT 'grpo' AS variant, id, text AS original, rephrase(text, 'grpo_full') AS rephrased FROM rl_held_out
UNION ALL
SELECT 'sft + grpo' AS variant, id, text AS original, rephrase(text, 'sft_grpo') AS rephrased FROM rl_held_out
