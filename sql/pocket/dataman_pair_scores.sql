-- Overall scores, and expected scores, of both sides of the pages that have clutter.
SELECT
    id,
    dataman(clean)['overall'] AS clean,
    dataman(dirty)['overall'] AS dirty,
    dataman(clean)['expected'] AS clean_expected,
    dataman(dirty)['expected'] AS dirty_expected
FROM held_out
WHERE dirty <> clean AND array_length(inserted) > 0 AND character_length(clean) >= 60
