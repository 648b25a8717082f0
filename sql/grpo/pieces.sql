-- Pages as pieces of whole lines, about $chunk_chars characters each: what the rephraser is asked at once. Every page is cut twice, the second
-- time half a piece later, so that there is more to train on. As in the paper, what already reads well is left out: pieces from $max_quality on.
SELECT
    md5(concat(organic_id, text)) AS id,
    organic_id,
    cut,
    text,
    quality
FROM (
    SELECT organic_id, cut, text, fasttext_score(text) AS quality
    FROM (
        SELECT organic_id, cut, trim(string_agg(line, chr(10) ORDER BY at)) AS text
        FROM (
            SELECT organic_id, cut, at, line, floor((before + cut * $chunk_chars / 2) / $chunk_chars) AS piece
            FROM (
                SELECT
                    organic_id,
                    at,
                    line,
                    sum(character_length(line) + 1) OVER (PARTITION BY organic_id ORDER BY at) - character_length(line) - 1 AS before
                FROM (
                    SELECT organic_id, at, lines[at] AS line
                    FROM (
                        SELECT organic_id, lines, unnest(generate_series(1, CAST(array_length(lines) AS BIGINT))) AS at
                        FROM (SELECT id AS organic_id, string_to_array(text, chr(10)) AS lines FROM pages)
                    )
                )
            )
            CROSS JOIN (SELECT value AS cut FROM generate_series(0, 1))
        )
        GROUP BY organic_id, cut, piece
    )
    WHERE character_length(text) >= $min_chars
)
WHERE quality < $max_quality
