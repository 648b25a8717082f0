-- Requests and replies in the DataMan protocol: a domain's letter and fourteen scores, one a line. Of these texts only the overall score is
-- known: the thirteen others repeat it, and the domain is always "other".
SELECT id, text AS prompt, concat('O', repeat(concat(chr(10), CAST(overall AS VARCHAR)), 14)) AS completion
FROM examples
