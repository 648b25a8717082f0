-- One arm's documents, to be packed.
SELECT id, origin, text
FROM mixtures
WHERE arm = $arm
