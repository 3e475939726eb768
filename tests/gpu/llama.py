"""A Llama with random weights, with the tiny world's tokenizer beside it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from posttrain.config import resolve_model

ONE_BILLION = {
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
"""The shape of Llama 3.2 1B."""
TINY = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "tie_word_embeddings": True,
}  # fmt: skip


def save(folder: str, shape: dict[str, Any], mean_length: int | None = None) -> int:
    """Writes the model, in bfloat16 where there is a GPU to make it on; returns the number of its parameters.

    Args:
        folder: a directory.
        shape: of `LlamaConfig`.
        mean_length: tokens after which it ends its answer, on average; not at all, practically, where None.
    """
    torch.manual_seed(0)
    cuda = torch.cuda.is_available()
    with torch.device("cuda" if cuda else "cpu"):
        model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=4096))
    if mean_length is not None:
        model.generation_config.eos_token_id = list(range(max(1, shape["vocab_size"] // mean_length)))
    (model.bfloat16() if cuda else model).save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve_model("tiny:base")).save_pretrained(folder)
    return int(model.num_parameters())
