-- The pocket DataMan's scores beside DataMan's own, for documents that it did not learn from.
SELECT id, dataman_score AS wanted, dataman(text)['overall'] AS found, dataman(text)['expected'] AS found_expected
FROM documents
WHERE source_row >= $train_documents
