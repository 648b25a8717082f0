-- What a model is pretrained on: the best organic documents and the best recycled ones.
SELECT id, text, 'organic' AS origin, fasttext_score FROM organic_hq
UNION ALL
SELECT id, text, 'recycled' AS origin, fasttext_score FROM recycled_hq
