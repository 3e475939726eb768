"""Weight updates with the real trainer and the real engine, by what the machine has; prints one JSON line.

    python -m tests.gpu.weight_transfer [--dtype bfloat16] [--transport shm] [--billion]

Two GPUs: `nccl`. One, which trainer and engine share: `ipc`. None: `shm`. A random Llama is changed by 10 % noise and
sent, several times; each time the engine's log-probabilities of what it samples must be the trainer's, to 2e-2 in
bfloat16 and 1e-4 in float32, and must not have been before. The line is printed before that is judged.

Beside it, how far each of the two is from the same model computed in float32, sequence by sequence, at the end.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from posttrain import trainer_ranks
from posttrain.cluster import Cluster, result_of
from posttrain.config import Config
from posttrain.doctor import ExaminedTrainer
from posttrain.engines import prepare
from posttrain.parity import Difference, Hypothesis
from posttrain.workers import RayWorkers
from rollouts.renderer import Renderer
from rollouts.types import Prompt
from tests.gpu.llama import ONE_BILLION, save

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
UPDATES = 3
MILLION = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.05, "tie_word_embeddings": False,
}  # fmt: skip


async def measure(workers: RayWorkers, dtype: str) -> dict[str, Any]:
    """Updates the engine some times; says how long it stood still and how far apart the two are."""
    prompts = [Prompt(f"p{index}", ({"role": "user", "content": f"{index}+{index}"},)) for index in range(4)]
    await workers.ready()
    await workers.begin(0, None)
    at_start = await workers.drift(prompts)
    pauses, before, after = [], [], []
    for version in range(1, UPDATES + 1):
        await asyncio.gather(*(actor.perturb.remote(version) for actor in workers.trainer.actors))
        before.append(await workers.drift(prompts))
        pauses.append(await workers.update_weights(version))
        after.append(await workers.drift(prompts))
    assert workers.sent is not None
    groups = await workers.fresh(prompts)
    alone = [replace(group, rollouts=[rollout]) for group in groups for rollout in group.rollouts]  # one order for all
    pairs = [await workers.trainer.logprobs([each]) for each in alone]
    stored_N, now_N = torch.cat(pairs, dim=1)
    exact_N = await result_of(workers.trainer.actors[0].under.remote(Hypothesis("none"), *alone))
    return {
        "transport": workers.transport.name,
        "dtype": dtype,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "pause_ms": round(1000 * statistics.median(pauses), 1),
        "bytes": workers.sent.bytes,
        "apart_at_start": at_start,
        "apart_before": min(before),
        "apart_after": max(after),
        "engine_from_float32": Difference.of(stored_N, exact_N).mean,
        "trainer_from_float32": Difference.of(now_N, exact_N).mean,
    }


def main() -> None:
    """Prints and asserts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE)
    parser.add_argument("--transport", default="auto", choices=("auto", "shm", "nccl", "ipc"))
    parser.add_argument("--billion", action="store_true", help="the shape of Llama 3.2 1B, instead of 1M parameters")
    arguments = parser.parse_args()
    prepare()
    trainer_ranks.PolicyTrainer = ExaminedTrainer  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder) / "model")
        save(model, ONE_BILLION if arguments.billion else MILLION)
        engine = {
            "count": 1, "kv_cache_gib": 0.125, "gpu_memory_utilization": 0.3, "weight_transfer": arguments.transport,
        }  # fmt: skip
        rl = {"generators": 1, "sampling": {"temperature": 1.0, "max_tokens": 64}}
        shared = torch.cuda.device_count() == 1
        config = Config.model_validate({
            "model": model, "dtype": arguments.dtype, "max_model_len": 512, "rl": rl,
            "generators": engine | ({"gpus": 0.4} if shared else {}), "trainer": {"gpus": 0.5} if shared else {},
        })  # fmt: skip
        with Cluster(config) as cluster:
            pool = cluster.pool(model)
            workers = RayWorkers(cluster, pool, Renderer(model), model, model, Path(folder))
            found = asyncio.run(measure(workers, arguments.dtype))
        print(json.dumps(found))
        expected = {0: "shm", 1: "ipc"}.get(torch.cuda.device_count(), "nccl")
        assert found["transport"] == (expected if arguments.transport == "auto" else arguments.transport)
        allowed = TOLERANCE[arguments.dtype]
        assert found["apart_after"] <= allowed, f"{found['apart_after']} nats apart after an update"
        assert found["apart_before"] > 2 * allowed, f"the change moves the trainer by {found['apart_before']} only"


if __name__ == "__main__":
    main()
