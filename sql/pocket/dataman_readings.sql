-- Replies as in dataman_pairs.sql, and behind them the first three clutter lines: what it learns to name it learns to see.
SELECT id, text AS prompt, concat('O', chr(10), array_to_string(scores, chr(10)), CASE WHEN named = '' THEN '' ELSE concat(chr(10), chr(10), named) END) AS completion
FROM examples
