-- Requests and replies in the DataMan protocol: a domain's letter and fourteen scores, one a line. The domain is always "other".
SELECT id, text AS prompt, concat('O', chr(10), array_to_string(scores, chr(10))) AS completion FROM examples
