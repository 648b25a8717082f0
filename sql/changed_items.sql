-- Items that one model gets right and the other wrong. `base_evals_items` and `other_evals_items` are the item tables of two `evaluate` stages.
SELECT
    base.task,
    base.item,
    base.category,
    CASE WHEN other.correct THEN 'gained' ELSE 'lost' END AS change,
    base.answer,
    base.predicted AS base_predicted,
    other.predicted AS other_predicted,
    base.losses AS base_losses,
    other.losses AS other_losses
FROM base_evals_items AS base
JOIN other_evals_items AS other ON base.task = other.task AND base.item = other.item
WHERE base.correct <> other.correct
ORDER BY base.task, base.item
