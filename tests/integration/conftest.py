"""One real run of all stages, which the tests of this directory look at from all sides."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import Ended, posttrain


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here starts real engines."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two threads that wait for each other on busy cores take a hundred times as long as one."""
    import torch

    torch.set_num_threads(1)


@dataclass(frozen=True)
class Run:
    """A finished run and what its command said."""

    path: Path
    ended: Ended

    def json(self, name: str) -> Any:
        """A JSON file of the run."""
        return json.loads((self.path / name).read_text())

    def checkpoints(self, stage: str) -> list[Path]:
        """The checkpoint directories of a stage, oldest first."""
        return sorted((self.path / stage / "checkpoints").iterdir())


SETTINGS = """\
model: tiny:base
dtype: float32
max_model_len: 512
threads: 1
seed: 3
data:
  demonstrations: {path: tiny:sft, limit: 200}
  prompts: {path: tiny:rl, limit: 600}
  heldout: {path: tiny:heldout, limit: 30}
judge: {model: tiny:judge, template: tiny:judge-template, max_prompt_tokens: 500, count: 1}
generators: {count: 2, kv_cache_gib: 0.125}
sft: {learning_rate: 3e-4, per_device_train_batch_size: 20, gradient_accumulation_steps: 1, threads: 1}
rl:
  steps: 3
  prompts_per_step: 6
  group_size: 4
  max_staleness: 1
  learning_rate: 1e-4
  tokens_per_microbatch: 2048
  sampling: {temperature: 1.0, max_tokens: 64}
  eval_every: 2
  eval_prompts: 10
  checkpoint_every: 1
  checkpoints_kept: 10
dpo:
  learning_rate: 5e-5
  per_device_train_batch_size: 8
  gradient_accumulation_steps: 1
  fresh_prompts: 64
  samples_per_prompt: 4
eval: {samples: 2, pass_k: [1, 2], temperatures: [0.0, 1.0], max_tokens: 64}
"""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`posttrain run` on a small YAML, through the real TRL, Ray and vLLM."""
    cwd = tmp_path_factory.mktemp("pipeline")
    (cwd / "small.yaml").write_text(SETTINGS)
    return Run(cwd / "runs/small", posttrain("run", "small.yaml", cwd=cwd))
