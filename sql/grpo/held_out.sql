-- $held_out pieces that are only measured: all of a few documents, drawn by lot.
SELECT id, organic_id, text
FROM rl_pieces
WHERE cut = 0
ORDER BY md5(organic_id), id
LIMIT $held_out
