-- What is compared: how many times the organic budget each arm takes from each pool.
SELECT *
FROM (
    VALUES
        ('organic', 1.0, 0.0),             -- the good organic documents alone
        ('recycled', 1.0, 1.0),            -- the paper's: as many tokens of good recycled documents again
        ('recycled_double', 1.0, 2.0),     -- twice as many recycled
        ('organic_double', 2.0, 0.0)       -- as if there were more good organic documents: what recycling stands in for
) AS arms (arm, organic, recycled)
