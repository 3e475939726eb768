"""Evaluation on held-out prompts: pass@1 at several temperatures, pass@k, and the rate of each corner case."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from judges.corner_cases import KINDS, corner_cases
from posttrain import data
from posttrain.cluster import GeneratorPool
from posttrain.config import Config
from rollouts.generator import Request
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Rollout, Sampling, Scorer


def pass_at_k(samples: int, solved: int, k: int) -> float:
    """The unbiased estimate of the chance that one of k samples solves (https://arxiv.org/abs/2107.03374, eq. 1).

    Example: `pass_at_k(4, 1, 2) == 0.5`
    """
    if samples - solved < k:
        return 1.0
    return 1.0 - math.comb(samples - solved, k) / math.comb(samples, k)


def mean_and_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Mean and normal 95 % interval over prompts: the prompt, not the sample, is the independent unit."""
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / max(1, count - 1)
    half = 1.96 * math.sqrt(variance / count)
    return mean, (mean - half, mean + half)


@dataclass(frozen=True)
class Report:
    """What a checkpoint scores; rates are shares from 0 to 1.

    `pass_at_1` is at temperature 1 with its 95 % interval `ci95`; `best` the highest pass@1 over the temperatures.
    """

    prompts: int
    samples: int
    pass_at_1: float
    ci95: tuple[float, float]
    pass_at_k: dict[int, float]
    by_temperature: dict[str, float]
    greedy: float | None
    best: float
    by_capability: dict[str, float]
    by_difficulty: dict[str, float]
    by_instruction: dict[str, float]
    by_instruction_use: dict[str, float]  # `trained`, `held_out`: where prompts are asked under a pool's instructions
    corner_cases: dict[str, float]
    corner_case_counts: dict[str, int]
    mean_tokens: float
    by_prompt: dict[str, tuple[float, float]]  # prompt id -> share of its samples that solve, that show a corner case

    def as_json(self) -> dict[str, Any]:
        """For `summary.json` and `posttrain eval`; `pass@1` and `pass@k` under the names that people use."""
        values = asdict(self)
        passes = {f"pass@{k}": value for k, value in values.pop("pass_at_k").items()}
        return {"pass@1": values.pop("pass_at_1"), **passes, **values}


def change(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What changed from one report to another (both as JSON), with its 95 % interval, in pairs of the same prompt.

    Pairs are told apart where two intervals of their own overlap: most of their width is how much prompts differ.
    """
    pairs = [(was, after["by_prompt"][name]) for name, was in before["by_prompt"].items() if name in after["by_prompt"]]
    changes = {}
    for index, what in enumerate(("pass@1", "corner_cases")):
        mean, interval = mean_and_interval([now[index] - was[index] for was, now in pairs])
        changes[what] = {"mean": mean, "ci95": interval}
    return changes


async def evaluate(
    pool: GeneratorPool,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    config: Config,
    actors: Sequence[Any] | None = None,
    temperatures: Sequence[float] | None = None,
    samples: int | None = None,
    advance: Callable[[int], object] = int,
) -> Report:
    """Evaluates the weights that the engines hold.

    Args:
        pool: the engines.
        renderer: of the checkpoint's chat template.
        prompts: held out from all training.
        scorer: gives the outcomes.
        config: `eval` says what is measured.
        actors: of the pool, if not all.
        temperatures: if other than configured.
        samples: at temperature 1, if other than configured.
        advance: told how many completions are done.
    """
    settings = config.eval
    temperatures = sorted({1.0, *(settings.temperatures if temperatures is None else temperatures)})
    samples = settings.samples if samples is None else samples
    sampling = Sampling(max_tokens=settings.max_tokens, stop=tuple(config.rl.sampling.stop))

    async def at(temperature: float) -> list[list[Rollout]]:
        n = samples if temperature == 1.0 else 1 if temperature == 0 else settings.samples_other
        requests = [
            Request(
                renderer.prompt_tokens(prompt.messages),
                replace(sampling, temperature=temperature),
                n,
                seed=config.seed + 1_000_003 * index,
                conversation=data.conversation(config, prompt),
            )
            for index, prompt in enumerate(prompts)
        ]
        completions = await pool.generate(requests, actors)
        await asyncio.to_thread(score_completions, scorer, prompts, completions)
        advance(n * len(prompts))
        return completions

    # All at once: a fuller batch is faster, and one temperature is verified while another is generated.
    found = dict(zip(temperatures, await asyncio.gather(*map(at, temperatures)), strict=True))
    by_temperature = {
        f"{temperature:g}": sum(map(_rate, completions)) / len(prompts) for temperature, completions in found.items()
    }
    return _report(prompts, found[1.0], by_temperature, [k for k in settings.pass_k if k <= samples])


def score_completions(scorer: Scorer, prompts: Sequence[Prompt], completions: Sequence[Sequence[Rollout]]) -> None:
    """Writes reward, outcome and reason into the completions of each prompt."""
    for prompt, rollouts in zip(prompts, completions, strict=True):
        for rollout, score in zip(rollouts, scorer(prompt, rollouts), strict=True):
            rollout.reward, rollout.outcome, rollout.reason = score.reward, score.outcome, score.reason


def _rate(rollouts: Sequence[Rollout]) -> float:
    return sum(rollout.outcome for rollout in rollouts) / len(rollouts)


def _instruction_use(prompt: Prompt) -> str | None:
    if prompt.instruction_trained is None:
        return None
    return "trained" if prompt.instruction_trained else "held_out"


def _report(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Rollout]],
    by_temperature: Mapping[str, float],
    pass_k: Iterable[int],
) -> Report:
    samples = len(completions[0])
    rates = [_rate(rollouts) for rollouts in completions]
    mean, interval = mean_and_interval(rates)
    solved = [sum(rollout.outcome for rollout in rollouts) for rollouts in completions]
    counts: Counter[str] = Counter()
    by_prompt = {}
    for prompt, rollouts, rate in zip(prompts, completions, rates, strict=True):
        cases = [corner_cases(prompt, rollout) for rollout in rollouts]
        for kinds in cases:
            counts.update(kinds)
            counts["any"] += bool(kinds)
        by_prompt[prompt.prompt_id] = (rate, sum(map(bool, cases)) / samples)
    total = samples * len(prompts)

    def split(key: Callable[[Prompt], object]) -> dict[str, float]:
        parts: dict[str, list[float]] = defaultdict(list)
        for prompt, rate in zip(prompts, rates, strict=True):
            if key(prompt) is not None:
                parts[str(key(prompt))].append(rate)
        return {name: sum(part) / len(part) for name, part in sorted(parts.items())}

    return Report(
        prompts=len(prompts),
        samples=samples,
        pass_at_1=mean,
        ci95=interval,
        pass_at_k={k: sum(pass_at_k(samples, count, k) for count in solved) / len(solved) for k in pass_k if k > 1},
        by_temperature=dict(by_temperature),
        greedy=by_temperature.get("0"),
        best=max(by_temperature.values()),
        by_capability=split(lambda prompt: prompt.capability),
        by_difficulty=split(lambda prompt: prompt.difficulty),
        by_instruction=split(lambda prompt: prompt.instruction),
        by_instruction_use=split(_instruction_use),
        corner_cases={kind: counts[kind] / total for kind in (*KINDS, "any")},
        corner_case_counts={kind: counts[kind] for kind in (*KINDS, "any")},
        mean_tokens=sum(len(rollout.token_ids) for rollouts in completions for rollout in rollouts) / total,
        by_prompt=by_prompt,
    )
