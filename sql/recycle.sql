-- Rephrases every organic document, the good ones too (paper, section 3.1). A document that cannot be rephrased goes to `failed`.
SELECT
    md5(concat(id, ':', detail['model_hash'], ':', detail['prompt_hash'], ':', $seed)) AS id,
    id AS organic_id,
    detail['text'] AS text,
    detail['chunks'] AS chunks,
    detail['prompt_tokens'] AS prompt_tokens,
    detail['output_tokens'] AS output_tokens,
    detail['finish_reason'] AS finish_reason,
    detail['truncated'] AS truncated,
    'rephraser' AS model,
    detail['model_hash'] AS model_hash,
    detail['prompt_hash'] AS prompt_hash,
    $seed AS seed
FROM (SELECT id, rephrase_detail(text) AS detail FROM organic)
