-- What the rephraser makes of corrupted pages.
SELECT id, rephrase(dirty) AS answer
FROM held_out
