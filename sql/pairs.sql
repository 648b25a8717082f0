-- Recycled documents beside the text that they came from. A table of its own, so that sql/rewards.sql works row by row: a killed run then
-- continues with the next rows instead of scoring all of them again.
SELECT recycled.*, organic.text AS organic_text
FROM recycled
JOIN organic ON recycled.organic_id = organic.id
