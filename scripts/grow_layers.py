#!/usr/bin/env python3
"""A decoder with twice the layers that computes the same, as a start for further training.

usage: grow_layers.py MODEL_DIR OUT_DIR

Behind each layer stands a copy of it whose two output projections are zero, so that it adds nothing until it is trained (block expansion of LLaMA Pro,
arXiv:2401.02415). Needs torch and safetensors.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

ADDS_NOTHING = ("self_attn.o_proj.weight", "mlp.down_proj.weight")

source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
grown = {}
for name, tensor in load_file(source / "model.safetensors").items():
    parts = name.split(".")
    if "layers" not in parts:
        grown[name] = tensor
        continue
    at = parts.index("layers") + 1
    layer = int(parts[at])
    for behind in (0, 1):
        parts[at] = str(2 * layer + behind)
        copied = ".".join(parts)
        grown[copied] = torch.zeros_like(tensor) if behind and name.endswith(ADDS_NOTHING) else tensor.clone()
for path in source.iterdir():
    if path.name not in ("model.safetensors", "config.json"):
        shutil.copyfile(path, out / path.name)
save_file(grown, out / "model.safetensors", metadata={"format": "pt"})
config = json.loads((source / "config.json").read_text())
config["num_hidden_layers"] *= 2
(out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
print(f"{out}: {config['num_hidden_layers']} layers, {sum(tensor.numel() for tensor in grown.values())} parameters")
