#!/usr/bin/env python3
"""The first layers of a small decoder as a model directory of their own, for `kind: encoder`.

usage: pocket_encoder.py MODEL_DIR LAYERS OUT_DIR

The last norm's weights become 1, so that a layer's vectors keep their direction: cosines are those of the whole model. Needs torch and
safetensors.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

source, layers, out = pathlib.Path(sys.argv[1]), int(sys.argv[2]), pathlib.Path(sys.argv[3])
out.mkdir(parents=True, exist_ok=True)
tensors = load_file(source / "model.safetensors")
kept = {}
for name, tensor in tensors.items():
    parts = name.split(".")
    if "layers" in parts and int(parts[parts.index("layers") + 1]) >= layers:
        continue
    kept[name] = torch.ones_like(tensor) if name == "model.norm.weight" else tensor
save_file(kept, out / "model.safetensors", metadata={"format": "pt"})
config = json.loads((source / "config.json").read_text())
config["num_hidden_layers"] = layers
(out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
for name in ["tokenizer.json", "tokenizer_config.json"]:
    shutil.copyfile(source / name, out / name)
print(f"{out}: {layers} layers, {sum(tensor.numel() for tensor in kept.values())} parameters")
