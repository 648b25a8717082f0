-- What the tokenizer learns from: every segment mark often enough to be a token of its own, then requests with their answers.
SELECT concat(edit_request(lines), edit_answer(lines, lines)) AS text
FROM (SELECT repeat(concat('a', chr(10)), 96) AS lines FROM generate_series(1, 200))
UNION ALL
SELECT concat(prompt, completion) AS text FROM pairs
