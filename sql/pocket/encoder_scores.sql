-- BERTScore's F1 of the pairs.
SELECT id, kind, faithful, bertscore(rephrased, original)['f1'] AS f1 FROM encoder_pairs
