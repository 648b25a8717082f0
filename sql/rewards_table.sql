-- The table `rewards_summary` for the eye.
SELECT measure, round(organic, 3) AS organic, round(recycled, 3) AS recycled, documents FROM rewards_summary
