"""Evaluation on held-out prompts: pass@1 at several temperatures, pass@k, and the rate of each corner case."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing import TimeoutError as NotJudged
from multiprocessing.pool import ThreadPool
from typing import Any

from judges.corner_cases import KINDS, corner_cases
from posttrain import data
from posttrain.cluster import GeneratorPool
from posttrain.config import Config
from posttrain.progress import say
from posttrain.reward import judged_at_once
from rollouts.errors import JudgeError, UserError
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
    reward_by_capability: dict[str, float]
    tokens_by_capability: dict[str, float]
    by_prompt: dict[str, dict[str, float]]
    """Prompt id → `pass@1`, mean `reward` and `reward/NAME` of each of its criteria, and the share of samples with each
    corner case and with any."""

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
    for what in ("pass@1", "corner_cases", "reward", *KINDS):
        mean, interval = mean_and_interval([now[what] - was[what] for was, now in pairs])
        changes[what] = {"mean": mean, "ci95": interval}
    return changes


async def evaluate(
    pool: GeneratorPool,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    config: Config,
    engines: Sequence[int] | None = None,
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
        engines: of the pool, if not all.
        temperatures: if other than configured.
        samples: at temperature 1, if other than configured.
        advance: told how many completions are done.
    """
    settings = config.eval
    temperatures = sorted({1.0, *(settings.temperatures if temperatures is None else temperatures)})
    samples = settings.samples if samples is None else samples
    sampling = Sampling(max_tokens=settings.max_tokens, stop=tuple(config.rl.sampling.stop))

    async def at(temperature: float) -> dict[int, list[Rollout]]:
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
        completions = await pool.generate(requests, engines)
        limits = judged_at_once(config), config.generators.request_timeout
        judged = await asyncio.to_thread(score_completions, scorer, prompts, completions, *limits)
        advance(n * len(prompts))
        return {index: completions[index] for index in judged}

    # All at once: a fuller batch is faster, and one temperature is verified while another is generated.
    found = dict(zip(temperatures, await asyncio.gather(*map(at, temperatures)), strict=True))
    by_temperature = {
        f"{temperature:g}": sum(map(_rate, judged.values())) / len(judged) for temperature, judged in found.items()
    }
    at_one = [prompts[index] for index in found[1.0]], list(found[1.0].values())
    return _report(*at_one, by_temperature, [k for k in settings.pass_k if k <= samples])


def score_completions(
    scorer: Scorer,
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Rollout]],
    at_once: int = 1,
    limit: float = 600.0,
) -> list[int]:
    """Writes reward, its parts, outcome and reason into the completions of each prompt; of `at_once` prompts at a time.

    Args:
        scorer: gives them.
        prompts: of the completions.
        completions: of each prompt; none where they could not be made, because its environment failed.
        at_once: prompts.
        limit: seconds that a prompt may take.

    Returns:
        The indices of the prompts, without those whose completions could not be judged.

    Raises:
        JudgeError: none could.
        UserError: a prompt took longer.
    """
    judged, failure = score_each(scorer, prompts, completions, at_once, limit)
    if failure is not None:
        if not judged:
            raise failure
        tell_not_judged(len(prompts) - len(judged), len(prompts), failure)
    return judged


def score_each(
    scorer: Scorer, prompts: Sequence[Prompt], completions: Sequence[Sequence[Rollout]], at_once: int, limit: float
) -> tuple[list[int], JudgeError | None]:
    """As `score_completions`, with the last failure to judge in the place of an error."""
    judged, failure = [], None
    threads = ThreadPool(at_once)  # of daemons, unlike an executor's: one that hangs does not keep the process
    try:
        scoring = [threads.apply_async(scorer, each) for each in zip(prompts, completions, strict=True)]
        for index, (prompt, rollouts, scores) in enumerate(zip(prompts, completions, scoring, strict=True)):
            try:
                if not rollouts:
                    raise JudgeError(f"environment failed on prompt {prompt.prompt_id}")
                for rollout, score in zip(rollouts, scores.get(limit), strict=True):
                    rollout.reward, rollout.outcome, rollout.reason = score.reward, score.outcome, score.reason
                    rollout.breakdown = dict(score.breakdown)
                judged.append(index)
            except JudgeError as error:
                failure = error
            except NotJudged:
                what = f"waited {limit:.0f} s (generators.request_timeout) for prompt {prompt.prompt_id} to be judged"
                raise UserError(f"{what}; the reward may hang") from None
    finally:
        threads.terminate()  # also what has not begun: a mistake of the user's is told at once
    return judged, failure


def tell_not_judged(count: int, prompts: int, failure: JudgeError) -> None:
    """Says how many prompts could not be judged, and why the last one could not."""
    say(f"{count} of {prompts} prompts are left out, not judged; the last: {failure}")


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
    rewards = [sum(rollout.reward for rollout in rollouts) / samples for rollouts in completions]
    for prompt, rollouts, rate, reward in zip(prompts, completions, rates, rewards, strict=True):
        cases = [corner_cases(prompt, rollout) for rollout in rollouts]
        own = Counter(kind for kinds in cases for kind in kinds)
        own["any"] = sum(map(bool, cases))
        counts.update(own)
        shares = {kind: own[kind] / samples for kind in KINDS}
        for name in rollouts[0].breakdown:
            shares[f"reward/{name}"] = sum(rollout.breakdown.get(name, 0.0) for rollout in rollouts) / samples
        by_prompt[prompt.prompt_id] = {"pass@1": rate, "reward": reward, "corner_cases": own["any"] / samples, **shares}
    total = samples * len(prompts)

    def split(key: Callable[[Prompt], object], values: Sequence[float] = rates) -> dict[str, float]:
        parts: dict[str, list[float]] = defaultdict(list)
        for prompt, value in zip(prompts, values, strict=True):
            if key(prompt) is not None:
                parts[str(key(prompt))].append(value)
        return {name: sum(part) / len(part) for name, part in sorted(parts.items())}

    def capability(prompt: Prompt) -> str:
        return prompt.capability

    tokens = [sum(len(rollout.token_ids) for rollout in rollouts) / samples for rollouts in completions]
    return Report(
        prompts=len(prompts),
        samples=samples,
        pass_at_1=mean,
        ci95=interval,
        pass_at_k={k: sum(pass_at_k(samples, count, k) for count in solved) / len(solved) for k in pass_k if k > 1},
        by_temperature=dict(by_temperature),
        greedy=by_temperature.get("0"),
        best=max(by_temperature.values()),
        by_capability=split(capability),
        by_difficulty=split(lambda prompt: prompt.difficulty),
        by_instruction=split(lambda prompt: prompt.instruction),
        by_instruction_use=split(_instruction_use),
        corner_cases={kind: counts[kind] / total for kind in (*KINDS, "any")},
        corner_case_counts={kind: counts[kind] for kind in (*KINDS, "any")},
        mean_tokens=sum(tokens) / len(prompts),
        reward_by_capability=split(capability, rewards),
        tokens_by_capability=split(capability, tokens),
        by_prompt=by_prompt,
    )
