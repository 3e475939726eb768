"""A plain RL loop to compare the pipeline with: transformers and torch alone, one sequence at a time, nothing shared.

It trains on recorded batches and asks at each version how likely every token is that claims that version.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from posttrain.config import RLConfig

Rows = Sequence[dict[str, Any]]
"""Rollouts as they are recorded, one a row."""


def logprobs_of(model: Any, row: dict[str, Any], temperature: float) -> torch.Tensor:
    """Log-probability of each token of a completion: [T]."""
    prompt, completion = row["prompt_token_ids"], row["token_ids"]
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def learning_rate(config: RLConfig, step: int) -> float:
    """Of the step that follows `step` steps: a linear warm-up, then half a cosine to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    done = (step - config.warmup_steps) / (config.steps - config.warmup_steps)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def apart(model: Any, rows: Rows, version: int, temperature: float) -> float:
    """The largest difference between stored and own log-probability, of all tokens that claim a version."""
    largest = 0.0
    for row in rows:
        spans = [(start, end) for start, end, claimed in row["policy_versions"] if claimed == version and end > start]
        if spans:
            with torch.no_grad():
                differences = (logprobs_of(model, row, temperature) - torch.tensor(row["logprobs"])).abs()
            largest = max([largest, *(differences[start:end].max().item() for start, end in spans)])
    return largest


def train(
    model_path: str, batches: Sequence[Sequence[Rows]], everything: Rows, config: RLConfig, also: Container[int]
) -> tuple[Any, list[float], list[float]]:
    """Trains on batches of groups of rollouts.

    Returns:
        The model; by version, how far the tokens of `everything` that claim it are from it; and how far those of the
        next version are, for the versions of `also`.
    """
    model = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    betas, temperature = (config.adam_beta1, config.adam_beta2), config.sampling.temperature
    settings: dict[str, Any] = {"betas": betas, "eps": config.adam_epsilon, "weight_decay": config.weight_decay}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    own, next_ones = [], []
    for version, batch in enumerate(batches):
        own.append(apart(model, everything, version, temperature))
        if version in also:
            next_ones.append(apart(model, everything, version + 1, temperature))
        tokens = sum(len(row["token_ids"]) for group in batch for row in group)
        for group in batch:
            rewards = torch.tensor([row["reward"] for row in group], dtype=torch.float64)
            advantages = (rewards - rewards.mean()) / (rewards.std() + 1e-6)
            for row, advantage in zip(group, advantages.tolist(), strict=True):
                ratio = (logprobs_of(model, row, temperature) - torch.tensor(row["logprobs"])).exp()
                clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
                (-torch.minimum(ratio * advantage, clipped * advantage).sum() / tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, version)
        optimizer.step()
        optimizer.zero_grad()
    return model, own, next_ones
