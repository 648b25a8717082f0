-- Core and its five groups from the rows of an `evaluate` stage, as the paper has them (reference section 8): the unweighted mean of centered
-- accuracies. A task whose file was missing takes no part; `tasks` of `of` says so, `missing` names it.
SELECT
    COALESCE("group", 'core') AS name,
    AVG(centered) AS centered,
    COUNT(centered) AS tasks,
    CASE COALESCE("group", 'core')
        WHEN 'commonsense' THEN 3 WHEN 'language' THEN 6 WHEN 'reading' THEN 3 WHEN 'symbolic' THEN 5 WHEN 'world' THEN 5 ELSE 22
    END AS of,
    STRING_AGG(CASE WHEN centered IS NULL THEN task END, ', ' ORDER BY task) AS missing,
    MIN(baselines) AS baselines,
    MIN(model) AS model
FROM evals
WHERE core
GROUP BY GROUPING SETS (("group"), ())
ORDER BY name = 'core', name
