-- $held_out pieces that are only measured: two each of documents drawn by lot.
SELECT id, organic_id, text
FROM (
    SELECT id, organic_id, text, row_number() OVER (PARTITION BY organic_id ORDER BY id) AS place
    FROM rl_pieces
    WHERE cut = 0
)
WHERE place <= 2
ORDER BY md5(organic_id), id
LIMIT $held_out
