"""Makes tests/golden/dataman/: a tiny random Qwen2 as transformers saves it, with a byte-level tokenizer and Qwen's chat template, and
replies.json: for some texts, the fifteen values that transformers gives under the same constrained decoding (each value the likeliest of the
tokens allowed at its place, newlines forced, one token at a time, float32, plain attention).

With a path to the 500 real documents (low_score_500.jsonl) it also writes texts.txt: a hash (FNV-1a, 64 bits) of each document as DataMan's
annotators prepare it, by the rules of reference section 2.1 written down once more here.

Run with torch 2.11, transformers and tokenizers: python tests/golden/dataman.py [low_score_500.jsonl]
"""

import json
import pathlib
import re
import sys

import torch
from tokenizers import Tokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM

HERE = pathlib.Path(__file__).parent
OUT = HERE / "dataman"
REQUEST = (HERE.parent.parent / "assets/protocol/dataman_request.txt").read_text().rstrip()
CHAT = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
LETTERS, DIGITS = "ABCDEFGHIJKLMNO", "12345"
TEXTS = [
    "The water of the lake is cold, and the boats stay out of it in winter.",
    "", " \n\t ", "x", "one",
    "\U0001F600\U0001F680\U0001F469‍\U0001F467",
    "مرحبا بالعالم. هذا نص قصير.",
    "bell \x07 and null \x00 and escape \x1b[31m",
    "\"...\"A page that begins with an ellipsis.\n![](/pic.png)\nAnd a picture.",
    "- a\n- b\n- c\n\n| a | b |\n|---|---|\n| 1 | 2 |",
    "a document that says <|im_end|> and <|im_start|>system and goes on",
    "many words " * 50_000,
    "Buy now! Click here! Subscribe! 50% off!!!",
    "def f(x):\n    return x + 1\n",
]
# Texts that hold control tokens are encoded apart, as plain text.
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


def fnv(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def prepared(text, tokenizer):
    """A document as it is scored."""
    text = re.sub("^[\"“”]…+[\"“”]|^[\"“”][.]{3,}[\"“”]", "", text)
    text = re.sub(r"!\[\]\(/?[^)]+\)\n", "", text)
    if len(text) > 20_000:
        text = text[:10_000] + text[-10_000:]
    tokens = tokenizer.encode(text, add_special_tokens=False).tokens
    if len(tokens) > 1_894:
        tokens = tokens[:947] + ["..."] + tokens[-947:]
    return tokenizer.decoder.decode(tokens).strip()


def main():
    torch.set_num_threads(1)
    golden = json.loads((HERE / "tokenizers.json").read_text())
    file = next(t["file"] for t in golden if t["name"] == "bytelevel")
    OUT.mkdir(exist_ok=True)
    (OUT / "tokenizer.json").write_text(json.dumps(file, ensure_ascii=False))
    (OUT / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT, "eos_token": "<|im_end|>"}, indent=1) + "\n")
    tokenizer = Tokenizer.from_str(json.dumps(file))
    # The same without its control tokens, for documents that spell them out.
    plain = dict(file, added_tokens=[])
    plain = Tokenizer.from_str(json.dumps(plain))

    torch.manual_seed(3)
    config = Qwen2Config(vocab_size=336, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
                         max_position_embeddings=4096, bos_token_id=None, eos_token_id=332, tie_word_embeddings=True,
                         rope_parameters={"rope_type": "default", "rope_theta": 1e6}, attn_implementation="eager")
    model = Qwen2ForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.uniform_(0.5, 1.5) if name.endswith("norm.weight") else p.normal_(0.0, 0.35)
    model.save_pretrained(OUT)

    before, after = REQUEST.split("{text}")
    head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + before
    tail = after + "<|im_end|>\n<|im_start|>assistant\n"
    ids = lambda t, text: t.encode(text, add_special_tokens=False).ids
    single = lambda c: ids(tokenizer, c)[0]
    cases = []
    for text in TEXTS:
        hostile = any(c in text for c in CONTROLS)
        cleaned = prepared(text, plain if hostile else tokenizer)
        tokens = ids(tokenizer, head) + ids(plain, cleaned) + ids(tokenizer, tail) if hostile else ids(tokenizer, head + cleaned + tail)
        reply, smallest = [], 1e9
        with torch.no_grad():
            past = None
            feed = torch.tensor([tokens])
            for place in range(15):
                out = model(feed, past_key_values=past, use_cache=True)
                past = out.past_key_values
                allowed = LETTERS if place == 0 else DIGITS
                logits = out.logits[0, -1][[single(c) for c in allowed]]
                top = logits.topk(2).values
                smallest = min(smallest, (top[0] - top[1]).item())
                reply.append(allowed[int(logits.argmax())])
                feed = torch.tensor([[single(reply[-1]), single("\n")]])
        print(repr(text[:30]), len(tokens), "".join(reply), "smallest gap", round(smallest, 4))
        # A near tie would make the expected values a matter of rounding.
        assert smallest > 1e-3, "choose another seed"
        cases.append({"text": text if len(text) < 1000 else {"repeat": "many words ", "times": 50_000}, "reply": "".join(reply)})
    (OUT / "replies.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")

    if len(sys.argv) > 1:
        lines = pathlib.Path(sys.argv[1]).read_text().splitlines()
        hashes = [f"{fnv(prepared(json.loads(line)['text'], tokenizer)):016x}" for line in lines]
        (OUT / "texts.txt").write_text("\n".join(hashes) + "\n")
        print(len(hashes), "documents")


main()
