-- What the quality classifier learns from. hq: good pages of ours, their clean text, prose. cc: thin pages, and any text full of clutter.
SELECT text, 'hq' AS label FROM clean
UNION ALL
SELECT corrupt(text, CAST(row_number() OVER (ORDER BY id) AS BIGINT))['dirty'] AS text, 'cc' AS label FROM clean
UNION ALL
SELECT text, CASE WHEN quality = 'high' THEN 'hq' ELSE 'cc' END AS label FROM pages
