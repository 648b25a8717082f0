"""Makes train.json: cross entropy and AdamW worked by PyTorch (torch 2.11), for the tests in src/train/{loss,optim}.rs.

Run: python tests/golden/train.py > tests/golden/train.json
"""

import json

import torch
import torch.nn.functional as F

torch.manual_seed(5)


def flat(t):
    return [float(x) for x in t.detach().reshape(-1)]


def loss():
    rows, hidden_size, vocab = 7, 6, 11
    hidden = torch.randn(rows, hidden_size, requires_grad=True)
    weight = torch.randn(vocab, hidden_size, requires_grad=True)
    logits = hidden @ weight.T
    targets = torch.randint(0, vocab, (rows,))
    targets[:3] = logits[:3].argmax(-1)
    value = F.cross_entropy(logits, targets)
    value.backward()
    return {
        "hidden": flat(hidden), "weight": flat(weight), "targets": targets.tolist(), "loss": float(value),
        "correct": int((logits.argmax(-1) == targets).sum()),
        "hidden_grad": flat(hidden.grad), "weight_grad": flat(weight.grad),
    }


def adamw():
    matrix = torch.randn(3, 4, requires_grad=True)
    vector = torch.randn(4, requires_grad=True)
    settings = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
    rates = [0.02 * (10 - i) / 10 for i in range(10)]
    out = {**settings, "rates": rates, "matrix": flat(matrix), "vector": flat(vector)}
    optimiser = torch.optim.AdamW(
        [{"params": [matrix], "weight_decay": settings["weight_decay"]}, {"params": [vector], "weight_decay": 0.0}],
        betas=(settings["beta1"], settings["beta2"]), eps=settings["eps"],
    )
    for rate in rates:
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad()
        value = ((matrix @ vector - 1) ** 2).sum() + matrix.sin().sum()
        value.backward()
        torch.nn.utils.clip_grad_norm_([matrix, vector], settings["clip"])
        optimiser.step()
    return {**out, "matrix_after": flat(matrix), "vector_after": flat(vector)}


print(json.dumps({"loss": loss(), "adamw": adamw()}, indent=1))
