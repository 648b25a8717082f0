-- How often structure_preserved agrees with the labels of tests/golden/structure_pairs.jsonl, by the kind of change:
--   repro sql --table pairs=tests/golden/structure_pairs.jsonl --file sql/structure_agreement.sql
-- Without an entry `structure` under `models:` this measures the model-free form, with one the judge.
SELECT
    CASE WHEN preserved THEN 'kept' ELSE 'changed' END AS label,
    count(*) AS pairs,
    sum(CASE WHEN structure_preserved(original, rephrased) = preserved THEN 1 ELSE 0 END) AS agree,
    avg(CASE WHEN structure_preserved(original, rephrased) = preserved THEN 1.0 ELSE 0.0 END) AS share
FROM pairs
GROUP BY 1
ORDER BY 1
