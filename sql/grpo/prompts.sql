-- Pieces of pages to train on: each as long as the rephraser is asked at once. Documents of the held-out pieces have no part in it.
SELECT md5(concat(id, piece)) AS id, id AS organic_id, piece AS text
FROM (SELECT id, unnest(chunk(text, $chunk_chars)) AS piece FROM pages)
WHERE character_length(piece) >= $min_chars
  AND id NOT IN (SELECT organic_id FROM rl_held_out)
