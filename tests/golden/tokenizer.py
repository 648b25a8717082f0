"""Writes tokenizers.json: small tokenizers of the kinds that models ship, texts, and the ids that Python's tokenizers gives for them.

`plain` ids come from a copy of the tokenizer whose control tokens were never added. Run: python tests/golden/tokenizer.py
"""
import json, pathlib

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).parent
WORDS = """The quick brown fox jumps over the lazy dog. In the beginning there was a text about models and tokens;
it said that the end of the sentence is the end of the thought, and that im start or im end are think marks.
    Indented code: if x < y and y > z: return [x, y] | None </s> <s> user assistant system 0123456789 日本語 éàü"""

def added(name, special=True, **options):
    return AddedToken(name, special=special, normalized=False, **options)

def bytelevel():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([WORDS], trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    control = [added("<|endoftext|>"), added("<|im_start|>"), added("<|im_end|>"), added("<think>", False), added("</think>", False)]
    return tokenizer, control, [added("    ", False)]

def llama():
    """BPE over marked spaces, bos by the post-processor, control tokens inside the model's own vocabulary."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    first = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokenizer.train_from_iterator([WORDS], trainers.BpeTrainer(vocab_size=400, special_tokens=first, show_progress=False))
    tokenizer = Tokenizer.from_str(json.dumps({**json.loads(tokenizer.to_str()), "added_tokens": []}))
    control = [added("<unk>"), added("<s>"), added("</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer, control, []

def unigram():
    """A model that finds </s> in text by itself: the plain ids are those of its pieces cut apart."""
    words = sorted({c for c in WORDS} | {"the", "end", "<s", "/s>", "▁the"})
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)] + [(w, -2.0 - i / 100) for i, w in enumerate(words)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0))
    return tokenizer, [added("<unk>"), added("<s>"), added("</s>")], []

def wordpiece():
    words = ["[UNK]", "[CLS]", "[SEP]", "[", "]", "cls", "sep", "the", "end", "##s", "##o", "##f", ".", "<", ">", "|", "im", "_"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    return tokenizer, [added("[UNK]"), added("[CLS]"), added("[SEP]")], []

TEXTS = ["", "the end", " The end.\n\n", "if x:\n    return [x]", "<|im_end|>", "end<|im_end|>\n<|im_start|>user\nthe </s> of <s>",
         "<think>the</think> end", "[CLS] the [SEP] end", "日本語 <|endoftext|", "<|im_<|im_end|>end|>", "a\u0000b\u2028c"]

def ids(tokenizer, text, **options):
    return tokenizer.encode(text, **options).ids

def copy(tokenizer):
    twin = Tokenizer.from_str(tokenizer.to_str())
    twin.no_truncation()
    twin.no_padding()
    return twin

out = []
for name, make in [("bytelevel", bytelevel), ("llama", llama), ("unigram", unigram), ("wordpiece", wordpiece)]:
    tokenizer, control, ordinary = make()
    if ordinary:  # ids after the control tokens in the full tokenizer: the plain twin must give the same ones
        plain = json.loads(copy(tokenizer).to_str())
        full = copy(tokenizer)
        full.add_tokens(control + ordinary)
        plain["added_tokens"] = [t for t in json.loads(full.to_str())["added_tokens"] if t["content"] in {o.content for o in ordinary}]
        # keep the ids by putting the control tokens' rows into the vocabulary, where BPE never reaches them
        for token in json.loads(full.to_str())["added_tokens"]:
            plain["model"]["vocab"].setdefault(token["content"], token["id"])
        plain = Tokenizer.from_str(json.dumps(plain))
    else:
        plain = copy(tokenizer)
    tokenizer.add_tokens(control + ordinary)
    whole = copy(tokenizer)
    cases = []
    for text in TEXTS:
        case = {"text": text, "recognise": ids(whole, text, add_special_tokens=False), "decoded": whole.decode(ids(whole, text, add_special_tokens=False))}
        if name == "unigram":
            pieces = text.replace("<s>", "<\0s>").replace("</s>", "<\0/s>").split("\0") if "\0" not in text else [text]
            case["plain"] = [i for piece in pieces for i in ids(plain, piece, add_special_tokens=False)]
        else:
            case["plain"] = ids(plain, text, add_special_tokens=False)
        cases.append(case)
    controls = {t.content: whole.token_to_id(t.content) for t in control}
    out.append({"name": name, "file": json.loads(tokenizer.to_str()), "controls": controls, "around": ids(whole, "a"),
                "without": ids(whole, "a", add_special_tokens=False), "rows": max(whole.get_vocab().values()) + 1, "cases": cases})
(HERE / "tokenizers.json").write_text(json.dumps(out, ensure_ascii=False) + "\n")
