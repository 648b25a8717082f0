-- Every measure of every answer. `selector`: what the classifier that selects documents gains, on which nothing was trained. The parts are those of the reward, so that a variant's `total` can be compared with the training's.
SELECT
    variant,
    id,
    rephrased,
    quality,
    selector,
    f1,
    CAST(f1 >= $same_meaning AS INT) AS meaning,
    structure,
    length_ratio,
    CAST(length_ratio <= 1.25 AS INT) AS length
FROM (
    SELECT
        variant,
        id,
        rephrased,
        dataman(rephrased)['overall'] - dataman(original)['overall'] AS quality,
        fasttext_score(rephrased) - fasttext_score(original) AS selector,
        bertscore(rephrased, original)['f1'] AS f1,
        CAST(structure_preserved(original, rephrased) AS INT) AS structure,
        length_ratio(original, rephrased) AS length_ratio
    FROM answers
    WHERE rephrased IS NOT NULL
)
