-- Requests and replies in the DataMan protocol: a domain's letter and fourteen scores, one a line. Only the overall score is known of
-- these texts; the thirteen others repeat it.
SELECT id, text AS prompt, concat(domain, repeat(concat(chr(10), CAST(overall AS VARCHAR)), 14)) AS completion
FROM examples
