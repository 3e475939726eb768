"""Pre-training of the tiny Llamas: a plain next-token loop over conversations, minutes on two cores.

Batches hold conversations of similar length, padded, so that no conversation sees another.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Conversation = list[dict[str, str]]


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of about 1M parameters (head size 32: the smallest that vLLM's CPU kernels take)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(
    conversations: Iterator[Conversation],
    tokenizer: PreTrainedTokenizerFast,
    tokens_per_batch: int,
    assistant_only: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields `(token_ids[B,T], labels[B,T])` with about `tokens_per_batch` tokens, of conversations alike in length.

    Labels are -100 on padding and, with `assistant_only`, wherever the assistant does not speak.
    """
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    while chunk := list(itertools.islice(conversations, 4096)):
        texts = tokenizer.apply_chat_template(chunk, tokenize=False)
        rows = sorted(tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
        groups: list[list[list[int]]] = [[]]
        for row in rows:
            if len(row) * (len(groups[-1]) + 1) > tokens_per_batch and groups[-1]:
                groups.append([])
            groups[-1].append(row)
        order = torch.randperm(len(groups)).tolist()
        for group in (groups[index] for index in order):
            width = len(group[-1])
            ids = torch.full((len(group), width), tokenizer.pad_token_id)
            labels = torch.full((len(group), width), -100)
            for index, row in enumerate(group):
                ids[index, : len(row)] = torch.tensor(row)
                start = row.index(assistant) + 1 if assistant_only else 1
                labels[index, start : len(row)] = ids[index, start : len(row)]
            yield ids, labels


def train(
    model: LlamaForCausalLM,
    stream: Iterator[tuple[torch.Tensor, torch.Tensor]],
    tokens: int,
    learning_rate: float,
    log: Callable[[dict[str, Any]], None],
) -> None:
    """Trains in place on `tokens` tokens (padding counted): AdamW, 3 % warm-up, cosine to a tenth.

    In a process group the ranks average their gradients; `tokens` counts those of all ranks.
    """
    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    forward = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    steps = 0
    seen, started = 0, time.monotonic()
    model.train()
    for ids, labels in stream:
        progress = seen / tokens
        scale = min(progress / 0.03 + 0.01, 0.55 + 0.45 * math.cos(math.pi * min(progress, 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scale
        loss = forward(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        count = torch.tensor(ids.numel())
        if ranks > 1:
            distributed.all_reduce(count)
        seen, steps = seen + int(count), steps + 1
        if steps % 100 == 0 or seen >= tokens:
            rate = seen / (time.monotonic() - started)
            log({"step": steps, "tokens": seen, "loss": round(loss.item(), 4), "tokens_per_second": round(rate)})
        if seen >= tokens:
            return


def train_in_parallel(ranks: int, work: Callable[[int], None]) -> None:
    """Runs `work(rank)` in `ranks` processes of one thread each, joined in a gloo process group.

    Two processes of one thread are nearly twice as fast as one of two: the model is too small to share an operation.
    """
    with tempfile.TemporaryDirectory() as directory:
        spawn(_rank, (ranks, f"file://{directory}/rendezvous", work), nprocs=ranks)


def _rank(rank: int, ranks: int, rendezvous: str, work: Callable[[int], None]) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=ranks)
    try:
        work(rank)
    finally:
        distributed.destroy_process_group()
