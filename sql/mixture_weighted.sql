-- A training mixture by weights: a document of weight 2 is there twice (two epochs), one of weight 0.25 with a chance of one in four, decided by
-- its id and the seed. `copy` counts its copies from 0.
SELECT id, text, origin, fasttext_score, unnest(range(0, copies)) AS copy
FROM (
    SELECT
        *,
        CAST(floor(weight) AS BIGINT) + CASE
            WHEN left(md5(concat(id, ':', $seed)), 8) < lpad(to_hex(CAST(floor((weight - floor(weight)) * 4294967296) AS BIGINT)), 8, '0') THEN 1
            ELSE 0
        END AS copies
    FROM (
        SELECT id, text, origin, fasttext_score, CASE origin WHEN 'organic' THEN $organic_weight ELSE $recycled_weight END AS weight
        FROM mixture
    )
)
WHERE copies > 0
