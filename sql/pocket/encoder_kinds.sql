-- How each kind of pair scores, and the share of it that reaches the threshold.
SELECT kind, faithful, count(*) AS pairs, avg(f1) AS mean, approx_percentile_cont(f1, 0.05) AS p05, approx_percentile_cont(f1, 0.5) AS median,
       approx_percentile_cont(f1, 0.95) AS p95, avg(CASE WHEN f1 >= $threshold THEN 1.0 ELSE 0.0 END) AS reached
FROM encoder_scores
GROUP BY kind, faithful
ORDER BY mean DESC
