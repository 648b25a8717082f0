-- Clean text to learn from: our own pages without their clutter, and prose (WikiText's spaced punctuation undone; other text stays).
SELECT id, text FROM own_pages
UNION ALL
SELECT id, detokenise(text) AS text FROM prose WHERE character_length(text) >= 40
