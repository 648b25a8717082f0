-- What supervised fine-tuning learns from: pages made by the corrupter of our own clean texts, and those texts. No held-out page is among them:
-- those are other documents.
SELECT pair['dirty'] AS prompt, pair['clean'] AS completion
FROM (
    SELECT corrupt_page(text, variant * 1000003 + row) AS pair
    FROM (SELECT text, CAST(row_number() OVER (ORDER BY id) AS BIGINT) AS row FROM clean)
    CROSS JOIN (SELECT value AS variant FROM generate_series(1, 4))
)
