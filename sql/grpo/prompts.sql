-- Pieces to train on. Documents of the held-out pieces have no part in it.
SELECT DISTINCT id, organic_id, text
FROM rl_pieces
WHERE organic_id NOT IN (SELECT organic_id FROM rl_held_out)
