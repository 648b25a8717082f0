-- Overall scores of both sides of the pages that have clutter.
SELECT id, dataman(clean)['overall'] AS clean, dataman(dirty)['overall'] AS dirty
FROM held_out
WHERE dirty <> clean AND array_length(inserted) > 0 AND character_length(clean) >= 60
