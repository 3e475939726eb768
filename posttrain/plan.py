"""`--dry-run`: the resolved settings and what would be done, without starting anything."""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.config import Config, resolve_data, resolve_model
from posttrain.placement import ROLES, Placement

STAGES = ("prune", "sft", "rl", "dpo")


def print_plan(command: str, config: Config, run: Path) -> None:
    """Prints the settings as JSON and the plan as lines.

    Raises:
        ConfigError: a model or data path of the plan does not exist.
    """
    print(json.dumps(config.resolved(), indent=2, ensure_ascii=False))
    print(f"# run directory: {run.resolve()}" + (" (exists: continued)" if (run / "config.json").is_file() else ""))
    print(f"# base model: {resolve_model(config.model)}")
    rl, engines = config.rl, config.generators
    pruned = config.prune.enabled
    learnt = "what was kept" if pruned else _data(config, "demonstrations")
    lines = {
        "prune": f"judge {_data(config, 'demonstrations')} with {_judges(config)}, {_kept(config)}",
        "sft": f"{config.sft.num_train_epochs:g} epochs on {learnt}, learning rate {config.sft.learning_rate:g}",
        "rl": f"{rl.steps} steps of {rl.prompts_per_step} prompts x {rl.group_size} rollouts from "
        f"{_data(config, 'prompts')}, staleness at most {rl.max_staleness}; {rl.generators} of {engines.count} engines "
        f"make rollouts, each with {engines.tensor_parallel} device(s); reward {_reward(config)}",
        "dpo": f"at most {config.dpo.max_pairs} pairs, beta {config.dpo.beta:g}, learning rate "
        f"{config.dpo.learning_rate:g}",
        "passk": f"pass rates of {_data(config, 'prompts')}; {engines.count} engines sample; reward {_reward(config)}",
    }
    for stage in STAGES[not pruned :] if command == "run" else (command,):
        print(f"# {stage}: {lines[stage]}")
    if command == "run":
        print(f"# evaluations: base and each stage on {_data(config, 'heldout')}")
    judged = command != "run" or config.prune.enabled
    _print_placement(Placement.of(config, ROLES.get(command if judged else "rl", ())))


def _print_placement(placement: Placement) -> None:
    """Who takes which GPUs, where the cluster has any."""
    if placement.gpus:
        bundles = f"{len(placement.bundles)} bundle" + "s" * (len(placement.bundles) > 1)
        print(f"# GPUs: {placement.gpus} in {bundles} of one placement group; none where the cluster has none")
    for line in placement.lines():
        print(f"#   {line}")


def _data(config: Config, what: str) -> str:
    path = getattr(config.data, what).path
    return resolve_data(path) if path else f"data.{what} (not set)"


def _judges(config: Config) -> str:
    endpoint = config.judge.endpoint
    first = f"{endpoint.model} at {endpoint.base_url}" if endpoint else resolve_model(config.judge.model)
    return ", ".join([first, *map(resolve_model, config.judge.panel)])


def _reward(config: Config) -> str:
    """`auto`, or `auto; rubric of polite, correct for chat, by tiny:chat-judge`."""
    rubric = config.rubric
    if rubric is None:
        return config.reward
    whose = f" for {', '.join(rubric.capabilities)}" if rubric.capabilities is not None else ""
    grader = resolve_model(rubric.model) if rubric.model else None
    if rubric.endpoint is not None:
        grader = f"{rubric.endpoint.model} at {rubric.endpoint.base_url}"
    found = f"rubric of {', '.join(rubric.criteria)}{whose}" + (f", by {grader}" if grader else "")
    return f"{config.reward}; {found}" if whose else found


def _kept(config: Config) -> str:
    settings = config.prune
    how = {"judge": "", "random": ", chosen at random", "longest": ", those with the longest answers"}[settings.method]
    if settings.threshold is not None:
        return (
            f"keep those with a score of at least {settings.threshold:g} (or as many{how})"
            if how
            else (f"keep those with a score of at least {settings.threshold:g}")
        )
    return f"keep at most {settings.keep_ratio:.0%} of each capability{how}"
