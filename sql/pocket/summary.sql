-- The bars of the pocket rephraser, one row a set of texts. A page that fails (nothing was left of it) has no answer: it counts as empty.
SELECT
    set_name,
    count(*) AS texts,
    avg(CASE WHEN character_length(trim(coalesce(answer, ''))) > 0 THEN 1.0 ELSE 0.0 END) AS nonempty,
    CAST(sum(m['gone']) AS DOUBLE) / nullif(sum(m['inserted']), 0) AS clutter_gone,
    CAST(sum(m['kept']) AS DOUBLE) / nullif(sum(m['clean_words']), 0) AS words_kept,
    CAST(sum(m['in_source']) AS DOUBLE) / nullif(sum(m['output_words']), 0) AS words_from_source
FROM (
    SELECT CASE WHEN h.dirty = h.clean THEN 'pages left clean' ELSE 'corrupted pages' END AS set_name,
           a.answer,
           clutter_measure(h.dirty, h.clean, array_to_string(h.inserted, chr(10)), a.answer) AS m
    FROM held_out h LEFT JOIN answers a ON h.id = a.id
    UNION ALL
    SELECT 'documents' AS set_name, a.answer, clutter_measure(d.text, d.text, '', a.answer) AS m
    FROM documents d LEFT JOIN document_answers a ON d.id = a.id
)
GROUP BY set_name
ORDER BY set_name
