-- The documents of every arm: of each pool the best, until the arm's part of the budget is used up. The paper's way (reference section 1): the
-- threshold of a pool is what its budget makes it. Held-out pages and their rephrasings are in none.
SELECT arm, id, organic_id, origin, text, fasttext_score, tokens
FROM arms
JOIN (
    SELECT *, sum(tokens) OVER (PARTITION BY origin ORDER BY fasttext_score DESC, id ROWS UNBOUNDED PRECEDING) AS upto
    FROM pool
    WHERE NOT held_out
) AS ranked ON upto <= $organic_tokens * CASE origin WHEN 'organic' THEN organic ELSE recycled END
