"""Makes tests/golden/encoders/scored_*/ and tests/golden/bertscore_tiny.json: whole tiny models with tokenizers, and what the bert-score package
makes of odd texts with them.

Run with torch 2.11, transformers, tokenizers and bert-score: python tests/golden/bertscore_tiny.py
RoBERTa gets a space before the text, DeBERTa does not: the package asks its tokenizer for it (add_prefix_space), which transformers 4 does and
transformers 5 ignores, so it is put there by hand. Both have the byte-level BPE of GPT-2, with [CLS] … [SEP] and <s> … </s>.
"""

import json
import pathlib

import bert_score.utils
import torch
from bert_score import BERTScorer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (DebertaConfig, DebertaModel, DebertaTokenizer, RobertaConfig, RobertaModel, RobertaTokenizer)

HERE = pathlib.Path(__file__).parent
CORPUS = ["the house on the hill", "a small cat sat on the mat", "houses and hills and cats", "rain falls on small houses"]
TEXTS = ["the house on the hill", "  a small cat\n", "The cat, the cat!", "x", "😀 🎉😀", "مرحبا بالعالم", "a\x00b\x1b[0m", "日本語 テキスト", "tab\tand  two spaces",
         "rain " * 40]
SHAPE = dict(num_hidden_layers=2, hidden_size=16, num_attention_heads=2, intermediate_size=24, max_position_embeddings=130)


def bpe(special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(m) for m in model["merges"]]


def make(name):
    torch.manual_seed(11)
    if name == "roberta":
        vocab, merges = bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        tokenizer = RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=64)
        model = RobertaModel(RobertaConfig(**SHAPE, vocab_size=len(vocab), type_vocab_size=1, pad_token_id=1))
    else:
        vocab, merges = bpe(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"])
        tokenizer = DebertaTokenizer(vocab=vocab, merges=merges, model_max_length=100)
        model = DebertaModel(DebertaConfig(**SHAPE, vocab_size=len(vocab), relative_attention=True, max_relative_positions=24,
                                           pos_att_type="c2p|p2c", position_biased_input=False, layer_norm_eps=1e-7))
    with torch.no_grad():
        for parameter_name, p in model.named_parameters():
            if "LayerNorm.weight" not in parameter_name:
                p.normal_(0.0, 0.4)
    directory = HERE / "encoders" / f"scored_{name}"
    model.float().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def spaced(tokenizer, text):
    text = text.strip()
    text = " " + text if isinstance(tokenizer, RobertaTokenizer) else text
    return tokenizer.encode(text, add_special_tokens=True, max_length=tokenizer.model_max_length, truncation=True)


def main():
    torch.set_num_threads(1)
    bert_score.utils.sent_encode = spaced
    out = {"texts": TEXTS}
    for name in ["roberta", "deberta"]:
        scorer = BERTScorer(str(make(name)), num_layers=2, device="cpu", use_fast_tokenizer=True)
        rows = []
        for candidate in TEXTS:
            # One at a time, so that nothing is padded.
            for reference in TEXTS:
                rows.append([round(x.item(), 6) for x in scorer.score([candidate], [reference])])
        out[name] = rows
        print(name, rows[:3])
    (HERE / "bertscore_tiny.json").write_text(json.dumps(out, ensure_ascii=False).replace("], [", "],\n[") + "\n")


main()
