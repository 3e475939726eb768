"""The asynchronous loop with the preset llama-3.2-1b, on one GPU that engine and trainer share; prints one JSON line.

    python -m tests.gpu.loop          # the shape of Llama 3.2 1B, 64 prompts a step with 8 answers of up to 1024 tokens
    python -m tests.gpu.loop --tiny   # a few layers and short answers, anywhere

Weights are random, and so is the reward: what is measured is the machinery, the command `posttrain rl` itself. Answers
end by chance, after 400 tokens on average. The first two steps are left out, in which both sides compile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from rollouts.types import Prompt
from tests.gpu.llama import ONE_BILLION, TINY, save

COLD = 2
MEDIANS = ("pause", "staleness", "train/seconds", "train/tokens", "train/kl", "train/padding_share", "rejected")


def coin(prompt: Prompt, completion: str) -> bool:
    """A reward of either kind for any answer."""
    return random.random() < 0.5


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a few layers and short answers")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("settings", nargs="*", help="KEY=VALUE, of the configuration")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, run = Path(folder, "model"), Path(folder, "run")
        parameters = save(str(model), TINY if arguments.tiny else ONE_BILLION, 20 if arguments.tiny else 400)
        prompts = "{path: 'tiny:rl', limit: 512}"
        changes = [
            f"model={model}", "reward=tests.gpu.loop:coin", f"data.prompts={prompts}", f"data.heldout={prompts}",
            f"rl.steps={arguments.steps}", "rl.eval_every=0", "rl.warmup_steps=0",
        ]  # fmt: skip
        if arguments.tiny:
            changes += [
                "dtype=float32", "rl.sampling.max_tokens=48", "rl.prompts_per_step=4",
                "rl.tokens_per_microbatch=2048", "generators.kv_cache_gib=0.25", "generators.enforce_eager=true",
            ]  # fmt: skip
        words = ["-m", "posttrain", "rl", "llama-3.2-1b", "--run", str(run), *changes, *arguments.settings]
        subprocess.run([sys.executable, *words], check=True, stdout=sys.stderr)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train/loss" in row][COLD - 1 :]
    pairs = list(itertools.pairwise(steps))
    seconds = [after["time"] - before["time"] for before, after in pairs]
    generated = [after["tokens_generated"] - before["tokens_generated"] for before, after in pairs]
    medians = {key: statistics.median(row[key] for row in steps[1:]) for key in MEDIANS}
    print(json.dumps({
        "bench": "gpu_loop", "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "parameters": parameters, "steps": len(pairs), "settings": arguments.settings, "torch": torch.__version__,
        "seconds": {"min": min(seconds), "median": statistics.median(seconds), "max": max(seconds)},
        "generated_per_second": sum(generated) / sum(seconds), **medians,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
