"""Model FLOPs utilization of the trainer's step, on a Llama with random weights. Aim: 45 % on an H100 in bfloat16.

    python -m tests.gpu.mfu            # a 1B Llama, sequences of 2048 tokens; needs a GPU
    python -m tests.gpu.mfu --varied   # answers of 1 to 1792 tokens, as rollouts are: padding is not counted
    python -m tests.gpu.mfu --tiny     # a few layers, anywhere

The step is `PolicyTrainer.train_step`, from groups of rollouts to new parameters: rows, forward and backward passes,
loss, clipping, AdamW. Counted are the FLOPs that the model's arithmetic needs (PaLM, https://arxiv.org/abs/2204.02311,
appendix B): 6 for each weight of a layer and token, 6 for each weight of the output head and loss token, and those of
causal attention, half of a full one. What gradient checkpointing computes again is not counted. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from posttrain.config import Config
from posttrain.trainer import PolicyTrainer
from rollouts.types import Prompt, Rollout, RolloutGroup
from tests.gpu.llama import ONE_BILLION, TINY, save

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s by what a device's name contains, as its maker states them (SXM)."""


def groups(size: int, prompt: int, completions: Sequence[int], vocabulary: int) -> list[RolloutGroup]:
    """Groups of rollouts of random tokens, so many in each."""
    rng = random.Random(0)

    def tokens(length: int) -> list[int]:
        return [rng.randrange(vocabulary) for _ in range(length)]

    def rollout(index: int) -> Rollout:
        length = completions[index]
        return Rollout(
            tokens(length), [True] * length, [-12.0] * length, [(0, length, 0)], "stop", "", reward=index % 2
        )

    return [
        RolloutGroup(
            start // size, Prompt(str(start), ()), tokens(prompt), [rollout(start + index) for index in range(size)]
        )
        for start in range(0, len(completions), size)
    ]


def flops(shape: dict[str, Any], prompt: int, completions: Sequence[int]) -> float:
    """Of one train step on sequences of a prompt and a completion each."""
    hidden, layers, heads = shape["hidden_size"], shape["num_hidden_layers"], shape["num_attention_heads"]
    attention = hidden * shape["head_dim"] * (2 * heads + 2 * shape["num_key_value_heads"])
    weights = layers * (attention + 3 * hidden * shape["intermediate_size"])

    def of_sequence(completion: int) -> int:
        length = prompt + completion
        scores = 6 * layers * heads * int(shape["head_dim"]) * length  # of each token: on average half of the others
        return length * (6 * weights + scores) + 6 * hidden * int(shape["vocab_size"]) * completion

    return float(sum(map(of_sequence, completions)))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a few layers and short sequences")
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed, after two that are not")
    parser.add_argument("--tokens", type=int, default=None, help="rl.tokens_per_microbatch")
    parser.add_argument("--varied", action="store_true", help="completions of all lengths up to the longest")
    parser.add_argument("--checkpointing", action="store_true", help="trainer.gradient_checkpointing")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="trainer.compile")
    parser.add_argument("--dtype", default=None, help="trainer.dtype")
    arguments = parser.parse_args()
    shape = TINY if arguments.tiny else ONE_BILLION
    prompt, completion, count, size = (16, 48, 2, 4) if arguments.tiny else (256, 1792, 4, 8)
    rng = random.Random(1)
    lengths = [rng.randint(1, completion) if arguments.varied else completion for _ in range(count * size)]
    tokens = arguments.tokens or 4 * (prompt + completion)
    dtype = arguments.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
    config = Config.model_validate({
        "model": "random/llama", "dtype": dtype, "max_model_len": 4096,
        "rl": {
            "prompts_per_step": count, "group_size": size, "tokens_per_microbatch": tokens,
            "sampling": {"max_tokens": completion},
        },
        "trainer": {"gradient_checkpointing": arguments.checkpointing, "compile": arguments.compile},
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        save(folder, shape)
        trainer = PolicyTrainer(folder, folder, config)
    batch = groups(size, prompt, lengths, shape["vocab_size"])
    steps = [trainer.train_step(*batch) for _ in range(2 + arguments.steps)][2:]
    seconds = [step.seconds for step in steps]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    peak = next((value for name, value in PEAKS.items() if name in device), None)
    done, length = flops(shape, prompt, lengths), sum(lengths) + prompt * len(lengths)
    utilization = None if peak is None or dtype != "bfloat16" else done / statistics.median(seconds) / peak
    print(json.dumps({
        "bench": "mfu", "value": utilization, "target": 0.45, "holds": utilization is not None and utilization >= 0.45,
        "device": device, "dtype": dtype, "parameters": sum(p.numel() for p in trainer.policy.parameters()),
        "longest": prompt + completion, "sequences": len(lengths), "tokens": length, "tokens_per_microbatch": tokens,
        "padding_share": steps[0].padding_share, "gradient_checkpointing": arguments.checkpointing,
        "compile": trainer.compiled, "teraflops_per_step": done / 1e12,
        "seconds": {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)},
        "tokens_per_second": length / statistics.median(seconds),
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
