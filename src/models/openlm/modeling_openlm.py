"""OpenLM for transformers, written by repro beside an exported model; use trust_remote_code=True.

A pre-norm decoder: layer norms with a gain and no bias, norms over the full width of queries and keys before the heads are
split, rotary positions (first half with second half), a SwiGLU layer, an output matrix of its own, no biases anywhere.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast


class OpenLMConfig(PretrainedConfig):
    model_type = "openlm"

    def __init__(self, vocab_size=50432, hidden_size=1024, num_hidden_layers=24, num_attention_heads=8,
                 intermediate_size=2816, max_position_embeddings=2048, layer_norm_eps=1e-5, rope_theta=10000.0,
                 qk_norm=True, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.layer_norm_eps = layer_norm_eps
        self.rope_theta = rope_theta
        self.qk_norm = qk_norm
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


class GainNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, None, self.eps)


def rotate(x, cos, sin):
    """x [B, heads, T, D]; cos, sin [T, D/2]; dimension i pairs with i + D/2."""
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        width = config.hidden_size
        self.heads, self.layer, self.theta = config.num_attention_heads, layer, config.rope_theta
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)
        self.q_norm = GainNorm(width, config.layer_norm_eps)
        self.k_norm = GainNorm(width, config.layer_norm_eps)

    def forward(self, x, start, mask, cache):
        batch, length, width = x.shape
        q, k, v = self.in_proj(x).chunk(3, -1)
        q, k, v = (t.view(batch, length, self.heads, -1).transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))
        dim = width // self.heads
        frequencies = 1.0 / self.theta ** (torch.arange(0, dim, 2, device=x.device, dtype=torch.float32) / dim)
        angles = torch.arange(start, start + length, device=x.device, dtype=torch.float32)[:, None] * frequencies
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and length > 1)
        return self.out_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w12 = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate, up = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = GainNorm(config.hidden_size, config.layer_norm_eps)
        self.ffn_norm = GainNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x, start, mask, cache):
        x = x + self.attention(self.attention_norm(x), start, mask, cache)
        return x + self.feed_forward(self.ffn_norm(x))


class OpenLMForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = OpenLMConfig
    base_model_prefix = ""
    _supports_sdpa = True
    _no_split_modules = ["Block"]

    def __init__(self, config):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = GainNorm(config.hidden_size, config.layer_norm_eps)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.tok_embeddings

    def set_input_embeddings(self, value):
        self.tok_embeddings = value

    def get_output_embeddings(self):
        return self.output

    def set_output_embeddings(self, value):
        self.output = value

    def forward(self, input_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None, labels=None,
                use_cache=False, **kwargs):
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        start = past_key_values.get_seq_length() if past_key_values is not None else 0
        x = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        length = x.shape[1]
        mask = None
        padded = attention_mask is not None and not bool(attention_mask.all())
        if padded or (start > 0 and length > 1):
            # [T, start + T]: what a position may see. Padding belongs on the right.
            mask = torch.ones(length, start + length, dtype=torch.bool, device=x.device).tril(start)[None, None]
            if padded:
                mask = mask & attention_mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, start, mask, past_key_values)
        logits = self.output(self.norm(x))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)
