-- Documents that no arm is trained on. `good`: organic pages as good as those of the arm `organic`. `clean`: rephrasings as good as those of the
-- arm `recycled`. `all`: every held-out organic page.
SELECT id, text
FROM pool
WHERE held_out
  AND CASE $held_out_set
      WHEN 'good' THEN origin = 'organic' AND fasttext_score >= (SELECT min(fasttext_score) FROM mixtures WHERE arm = 'organic')
      WHEN 'clean' THEN origin = 'recycled' AND fasttext_score >= (
          SELECT min(fasttext_score) FROM mixtures WHERE arm = 'recycled' AND origin = 'recycled'
      )
      ELSE origin = 'organic'
  END
