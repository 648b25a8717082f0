"""Makes tests/golden/encoders/: tiny random encoders as transformers saves them, and their hidden states after every layer.

Run with torch 2.11 and transformers: python tests/golden/encoders.py
Each directory is what `save_pretrained` writes, plus expected.safetensors: for sequence i, `tokens.i` [T] as int64 and `hidden.i.l` [T, H] as
float32 after l layers. Sequences go alone, in float32, with plain ("eager") attention. The directories differ in what they are to catch: names
(a masked LM's `bert.` prefix, gamma and beta as old checkpoints have them, no prefix), position offset, clamped distances, widths that are no
multiple of 16.
"""

import pathlib

import torch
from safetensors.torch import load_file, save_file
from transformers import (AutoModel, BertConfig, BertForMaskedLM, DebertaConfig, DebertaForSequenceClassification, DebertaModel, RobertaConfig,
                          RobertaModel)

HERE = pathlib.Path(__file__).parent / "encoders"
LENGTHS = [1, 2, 7, 33, 61]
TINY = dict(vocab_size=96, num_hidden_layers=3, max_position_embeddings=72, attn_implementation="eager")
MODELS = {
    "bert": (BertForMaskedLM, BertConfig(**TINY, hidden_size=32, num_attention_heads=4, intermediate_size=40, type_vocab_size=2)),
    "roberta": (RobertaModel, RobertaConfig(**TINY, hidden_size=40, num_attention_heads=2, intermediate_size=72, type_vocab_size=1,
                                            hidden_act="gelu_new", pad_token_id=1)),
    # As deberta-large-mnli, but with a span shorter than the sequences, so that distances are clamped.
    "deberta": (DebertaForSequenceClassification, DebertaConfig(**TINY, hidden_size=32, num_attention_heads=2, intermediate_size=64, type_vocab_size=0,
                                            relative_attention=True, max_relative_positions=20, pos_att_type="c2p|p2c",
                                            position_biased_input=False, layer_norm_eps=1e-7)),
    # Each term alone, and positions in the input.
    "deberta_c2p": (DebertaModel, DebertaConfig(**TINY, hidden_size=32, num_attention_heads=2, intermediate_size=64, type_vocab_size=2,
                                                relative_attention=True, pos_att_type=["c2p"], position_biased_input=True)),
    "deberta_p2c": (DebertaModel, DebertaConfig(**TINY, hidden_size=48, num_attention_heads=2, intermediate_size=64, type_vocab_size=0,
                                                relative_attention=True, max_relative_positions=64, pos_att_type=["p2c"],
                                                position_biased_input=False)),
}


def old_names(directory):
    """Norms as the first BERT checkpoints name them."""
    path = directory / "model.safetensors"
    tensors = load_file(path)
    renamed = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in tensors.items()}
    save_file(renamed, path, metadata={"format": "pt"})


def main():
    torch.set_num_threads(1)
    for number, (name, (model_class, config)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        model = model_class(config).float().eval()
        with torch.no_grad():
            for parameter_name, p in model.named_parameters():
                if "LayerNorm.weight" in parameter_name:
                    p.uniform_(0.5, 1.5)
                else:
                    p.normal_(0.0, 0.3)
        directory = HERE / name
        model.save_pretrained(directory)
        if name == "bert":
            old_names(directory)
        expected = {}
        for i, length in enumerate(LENGTHS):
            tokens = torch.randint(3, config.vocab_size, (1, length))
            with torch.no_grad():
                states = model(tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True).hidden_states
            assert len(states) == config.num_hidden_layers + 1
            expected[f"tokens.{i}"] = tokens[0]
            expected |= {f"hidden.{i}.{l}": s[0].contiguous() for l, s in enumerate(states)}
        save_file(expected, directory / "expected.safetensors")
        print(name, sum(p.numel() for p in model.parameters()), "parameters")


def decoder_states():
    """Hidden states of the decoders of decoders.py, which serve as encoders too."""
    expected = {}
    for name in ["qwen3", "qwen2", "llama"]:
        model = AutoModel.from_pretrained(HERE.parent / "decoders" / name, attn_implementation="eager", dtype=torch.float32).eval()
        torch.manual_seed(7)
        for i, length in enumerate([1, 9, 150]):
            tokens = torch.randint(0, model.config.vocab_size, (1, length))
            with torch.no_grad():
                states = model(tokens, output_hidden_states=True).hidden_states
            expected[f"{name}.tokens.{i}"] = tokens[0]
            expected |= {f"{name}.hidden.{i}.{l}": s[0].contiguous() for l, s in enumerate(states)}
    save_file(expected, HERE / "decoders.safetensors")


main()
decoder_states()
