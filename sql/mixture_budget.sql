-- A training mixture by token budgets: of each pool the best documents, until its budget is used up (the paper's B tokens: organic first, the rest
-- recycled). Tokens are those of the tokenizer that packs the mixture, a model entry `tokenizer`; 1 more for the end token.
SELECT id, text, origin, fasttext_score, tokens
FROM (
    SELECT *, sum(tokens) OVER (PARTITION BY origin ORDER BY fasttext_score DESC, id ROWS UNBOUNDED PRECEDING) AS upto
    FROM (
        SELECT id, text, 'organic' AS origin, fasttext_score, token_count(text, 'tokenizer') + 1 AS tokens FROM organic
        UNION ALL
        SELECT id, text, 'recycled' AS origin, fasttext_score, token_count(text, 'tokenizer') + 1 AS tokens FROM recycled
    )
)
WHERE upto <= CASE origin WHEN 'organic' THEN $organic_tokens ELSE $recycled_tokens END
