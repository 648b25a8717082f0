-- $held_out pieces of as many documents, never trained on.
SELECT id, organic_id, text
FROM (
    SELECT
        md5(concat(id, piece)) AS id,
        id AS organic_id,
        piece AS text,
        row_number() OVER (PARTITION BY id ORDER BY md5(piece)) AS place
    FROM (SELECT id, unnest(chunk(text, $chunk_chars)) AS piece FROM pages)
    WHERE character_length(piece) >= $min_chars
)
WHERE place = 1
ORDER BY md5(organic_id)
LIMIT $held_out
