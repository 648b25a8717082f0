-- All documents that can be packed, of both origins, with what the mixtures choose by. A page and its rephrasing are on the same side of the
-- split: $held_out of the pages, by their ids, are never trained on. Tokens are those of the tokenizer that packs; 1 more for the end token.
SELECT
    *,
    token_count(text, 'tokenizer') + 1 AS tokens,
    left(md5(concat(organic_id, ':held out')), 8) < lpad(to_hex(CAST(floor($held_out * 4294967296) AS BIGINT)), 8, '0') AS held_out
FROM (
    SELECT id, id AS organic_id, text, 'organic' AS origin, fasttext_score(text) AS fasttext_score
    FROM organic
    UNION ALL
    SELECT id, organic_id, text, 'recycled' AS origin, fasttext_score
    FROM scored
    WHERE length_ratio <= $max_length_ratio
)
