"""Writes fasttext/*.bin, *.ftz and fasttext.json: small classifiers of every kind that fastText trains, and what it predicts.

Probabilities are those of the reference program (exp(log(p + 1e-5))). Run with fasttext installed: python tests/golden/fasttext_models.py
"""
import json, pathlib, random, tempfile

import fasttext

HERE = pathlib.Path(__file__).parent / "fasttext"
HERE.mkdir(exist_ok=True)
random.seed(5)
SYLLABLES = ["ba", "re", "ti", "mo", "su", "lä", "né", "ko", "日", "本", "x", "ing", "er", "st", "'s", "-"]

def word():
    return "".join(random.choice(SYLLABLES) for _ in range(random.randint(1, 4)))

VOCABULARY = sorted({word() for _ in range(900)})

def text(label, labels, length=None):
    """Words of a label come mostly from its own part of the vocabulary."""
    part = len(VOCABULARY) // labels or 1
    own = VOCABULARY[label * part % len(VOCABULARY):][:max(part, 8)]
    return " ".join(random.choice(own if random.random() < 0.7 else VOCABULARY) for _ in range(length or random.randint(3, 15)))

def train(name, names, lines, quantise=None, **options):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        for i in range(lines):
            label = i % len(names)
            file.write(f"__label__{names[label]} {text(label, len(names))}\n")
        file.flush()
        model = fasttext.train_supervised(file.name, thread=1, verbose=0, seed=3, **{"lr": 1.0, **options})
        if quantise is not None:
            model.quantize(input=file.name, thread=1, verbose=0, **quantise)
    model.save_model(str(HERE / name))
    return model

TWO, FIVE = ["cc", "hq"], ["a", "b", "c", "ä", "e"]
MANY = [f"l{i}" for i in range(260)]
MODELS = {
    "softmax_bigrams.bin": (TWO, 300, dict(dim=6, wordNgrams=2, bucket=200, epoch=10, minCount=2, loss="softmax")),
    "softmax_words.bin": (FIVE, 200, dict(dim=5, epoch=10, minCount=3, loss="softmax")),
    "softmax_chars.bin": (FIVE, 200, dict(dim=5, epoch=10, minCount=3, wordNgrams=3, minn=2, maxn=4, bucket=300, loss="softmax")),
    "chars_from_one.bin": (FIVE, 200, dict(dim=3, epoch=10, minCount=9, minn=1, maxn=2, bucket=100, loss="softmax")),
    "hs.bin": (FIVE + ["f", "g", "h"], 300, dict(dim=5, epoch=15, minCount=3, loss="hs")),
    "ns.bin": (FIVE, 200, dict(dim=5, epoch=10, minCount=3, loss="ns")),
    "ova.bin": (FIVE, 200, dict(dim=5, epoch=30, lr=1.0, minCount=3, wordNgrams=2, bucket=100, loss="ova")),
    "pruned.ftz": (FIVE, 300, dict(dim=7, epoch=10, wordNgrams=2, minn=2, maxn=3, bucket=500, loss="softmax",
                                  quantise=dict(cutoff=350, qnorm=True, dsub=2))),
    "plain.ftz": (FIVE, 300, dict(dim=6, epoch=10, loss="hs", quantise=dict(qnorm=False, dsub=4))),
    "output.ftz": (MANY, 900, dict(dim=4, epoch=10, loss="softmax", wordNgrams=2, bucket=300, quantise=dict(qnorm=True, qout=True, dsub=2))),
}
ODD = ["", "</s>", "batire </s> mosu", "__label__a batire", "__label__new 日本", "日本日本 lä\u00a0né", "\u00e9", "a", VOCABULARY[3] + "\u200b " + VOCABULARY[9],
       " ".join(VOCABULARY[::7])]
out = []
for name, (labels, lines, options) in MODELS.items():
    model = train(name, labels, lines, **options)
    cases = []
    for line in ODD + [text(i, len(labels)) for i in range(30)]:
        cases.append({"text": line, "top": [[label, p] for p, label in model.f.predict(line + "\n", 3, 0.0, "strict")]})
    out.append({"file": name, "labels": model.labels, "cases": cases})
(HERE.parent / "fasttext.json").write_text(json.dumps(out, ensure_ascii=False) + "\n")
