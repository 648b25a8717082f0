-- Keeps the best recycled documents that fill a token budget (paper, section 3.1): $token_budget unique tokens in all, of which the good organic
-- documents come first. The lowest score kept is the threshold that yields so many tokens; every row carries it.
SELECT *, min(fasttext_score) OVER () AS threshold
FROM (
    SELECT
        *,
        sum(tokens) OVER (ORDER BY fasttext_score DESC, id ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS tokens_so_far
    FROM (
        SELECT *, token_count(text) AS tokens
        FROM scored
        WHERE length_ratio <= $max_length_ratio
    ) AS counted
) AS ordered
WHERE tokens_so_far - tokens < $token_budget - (SELECT coalesce(sum(token_count(text)), 0) FROM organic_hq)
