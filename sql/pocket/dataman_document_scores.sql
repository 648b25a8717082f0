-- The pocket DataMan's overall score beside DataMan's own, for documents that it did not learn from.
SELECT id, dataman_score AS wanted, dataman(text)['overall'] AS found
FROM documents
WHERE source_row >= $train_documents
