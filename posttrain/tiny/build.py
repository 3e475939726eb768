"""`posttrain tiny build`: the whole tiny world from one seed."""

from __future__ import annotations

import functools
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import AutoTokenizer

from posttrain.tiny import data
from posttrain.tiny.pretrain import batches, new_model, train, train_in_parallel
from posttrain.tiny.tokenizer import train_tokenizer

BASE_TOKENS = 11_000_000
BASE_LEARNING_RATE = 2.5e-3
TOKENS_PER_BATCH = 2048
RANKS = 2


def train_base(out: str, log_file: str, seed: int, tokens: int, rank: int) -> None:
    """Pre-trains the base model as one rank of a process group; rank 0 writes it."""

    def log(line: dict[str, Any]) -> None:
        if rank == 0:
            with Path(log_file).open("a") as file:
                file.write(json.dumps({"model": "base", **line}) + "\n")
            if line["step"] % 1000 == 0:
                model.save_pretrained(f"{out}-{line['step']}")
                tokenizer.save_pretrained(f"{out}-{line['step']}")

    heldout = {data.row_hash(row) for row in data.heldout_rows(seed)}
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = new_model(tokenizer, seed)
    torch.manual_seed(seed + rank)
    stream = batches(data.corpus(seed, heldout, rank), tokenizer, TOKENS_PER_BATCH, assistant_only=True)
    train(model, stream, tokens, BASE_LEARNING_RATE, log)
    if distributed.get_rank() == 0:
        model.save_pretrained(out)


def build_base(out: Path, log_file: Path, seed: int, tokens: int = BASE_TOKENS) -> None:
    """Trains the tokenizer and the base model into a model directory."""
    heldout = {data.row_hash(row) for row in data.heldout_rows(seed)}
    sample = itertools.islice(data.corpus(seed, heldout, RANKS), 20_000)
    train_tokenizer(turn["content"] for conversation in sample for turn in conversation).save_pretrained(out)
    train_in_parallel(RANKS, functools.partial(train_base, str(out), str(log_file), seed, tokens))


if __name__ == "__main__":
    import sys

    start = time.time()
    build_base(Path(sys.argv[1]), Path(sys.argv[1] + ".jsonl"), 0)
    print(time.time() - start)
