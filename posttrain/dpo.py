"""`posttrain dpo`: repairs what RL leaves behind, on pairs mined from the RL run's own rollouts and fresh samples.

Light and last: TRL's `DPOTrainer` with a small learning rate on a few hundred pairs, whose rejected side is a corner
case (the asked format not obeyed, run-on, empty, repetition) and whose chosen side is the policy's own better answer.
"""

from __future__ import annotations

import asyncio
import glob
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from curricula.instructions import InstructionPools
from curricula.wordings import drop_words
from judges.endpoint import Endpoint, EndpointClient, check_address
from judges.llm import Failure
from judges.preference import PLACES, TEMPLATE, PreferenceJudge
from posttrain import data
from posttrain.cluster import Cluster, GeneratorPool, run
from posttrain.config import Config, PreferenceConfig, resolve_model
from posttrain.evaluate import score_completions
from posttrain.pairs import PreferencePair, Sampled, mine, preferred
from posttrain.placement import ROLES
from posttrain.progress import bar, say
from posttrain.reward import judged_at_once, scorer_of
from posttrain.rl_state import shards
from posttrain.rundir import RunDir
from posttrain.templates import read_template
from rollouts.errors import CheckpointError, DataError
from rollouts.generator import Request
from rollouts.recorder import read_shards, write_rows
from rollouts.renderer import Renderer
from rollouts.types import Prompt, Rollout, Sampling, Scorer

NEWEST_SHARDS = 2
"""Shards in which the last rollouts are looked for."""

RECENT_VERSIONS = 10
"""Of the RL run's rollouts only those of so many last policy versions are mined: older policies made mistakes that are
gone, and to push the policy off what it does not do costs competence."""


class NothingToRepairError(DataError):
    """There are no pairs to train on."""


def train_dpo(config: Config, rundir: RunDir, resume: str | None = None) -> Path:
    """Runs the stage; returns its last checkpoint.

    Args:
        config: of the run.
        rundir: whose newest RL checkpoint is sampled and trained, and whose RL rollouts are mined.
        resume: `auto`, or a checkpoint directory of this stage to continue from.

    Raises:
        NothingToRepairError: no pair was found, or none can be mined.
        UserError: wrong data or checkpoint.
        Stopped: by the user; a checkpoint was written.
    """
    parent, checkpoint = rundir.begin("dpo", resolve_model(config.model), resume)
    if config.environment is not None:
        raise NothingToRepairError("pairs of several turns are not supported; unset `environment` for this stage")
    stored = rundir.stage("dpo") / "pairs.parquet"
    if checkpoint is None or not stored.is_file():
        _write(stored, _mine(config, rundir, parent), Renderer(parent))
    rundir.save_config()

    import datasets
    import torch
    from trl import DPOConfig

    from posttrain.adapters import lora_config
    from posttrain.pair_trainer import PairTrainer
    from posttrain.trl_stage import StageCallback, common_arguments, on_one_device, stage_model, train

    torch.set_num_threads(config.sft.threads)
    datasets.disable_progress_bars()
    rows = _fitting(_read(stored, rundir.stage("dpo") / "trainer" / "cache"), config.dpo.max_length)
    tokenizer = Renderer(parent).tokenizer
    callback = StageCallback(rundir, "dpo", parent, 1, tokenizer)
    arguments: dict[str, Any] = common_arguments(config.dpo, rundir, "dpo")
    trainer = PairTrainer(
        model=stage_model(config, parent),
        # With an adapter the reference is the model beneath it.
        ref_model=None if config.lora else stage_model(config, parent),
        args=on_one_device(DPOConfig(beta=config.dpo.beta, logging_steps=5, save_steps=10**9, **arguments)),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(config.lora) if config.lora else None,
        callbacks=[callback],
    )
    say(f"dpo: {len(rows)} pairs, {config.dpo.num_train_epochs:g} epochs, from {parent}")
    return train(trainer, callback, checkpoint)


def _read(path: Path, cache: Path) -> Any:
    """The pairs of a file, as a data set.

    Raises:
        CheckpointError: an earlier version mined them.
    """
    import datasets

    rows = datasets.Dataset.from_parquet(glob.escape(str(path)), cache_dir=str(cache))
    if "chosen_ids" not in rows.column_names:
        raise CheckpointError(f"{path}: pairs of an earlier version, without their tokens; choose another --run")
    return rows


def _fitting(rows: Any, max_length: int) -> Any:
    """The pairs whose better side is taken as a whole: TRL cuts the end off a longer one, and the end of turn with it,
    so that only the worse side would show how to stop, as what is to be avoided.

    Raises:
        DataError: none is left.
    """

    def fits(row: dict[str, Any]) -> bool:
        return len(row["prompt_ids"]) + len(row["chosen_ids"]) <= max_length

    found = rows.filter(fits)
    if len(found) < len(rows):
        say(f"dpo: {len(rows) - len(found)} of {len(rows)} pairs left out: longer than dpo.max_length={max_length}")
    if not len(found):
        raise DataError(f"every pair is longer than dpo.max_length={max_length} tokens; raise it")
    return found


def _mine(config: Config, rundir: RunDir, model: str) -> list[PreferencePair]:
    """Pairs from fresh samples of the RL checkpoint; where they are few, also from the last rollouts of the RL run."""
    preference = None if config.dpo.preference is None else _asked(config.dpo.preference)
    renderer = Renderer(model)
    prompts = data.prompts(config, "prompts", renderer, config.rl.sampling.max_tokens, say)
    fresh: list[Sampled] = []
    if config.dpo.fresh_prompts:
        with Cluster.of(config, ROLES["dpo"]) as cluster:
            scorer = scorer_of(config, cluster.graders())
            fresh = run(_fresh(config, renderer, cluster.pool(model), prompts, scorer))
    recorded = _recorded(rundir, {prompt.prompt_id: prompt for prompt in prompts}, data.instructions(config))
    pairs = mine([*fresh, *recorded], config.dpo.pairs_per_kind, config.dpo.max_pairs, config.seed, config.dpo.kinds)
    if preference is not None:
        most = min(config.dpo.pairs_per_kind, config.dpo.max_pairs - len(pairs))
        pairs += asyncio.run(_preferred(*preference, fresh or recorded, most, config.seed))
    if not pairs:
        raise NothingToRepairError(
            f"{rundir.path}: none of {', '.join(config.dpo.kinds)} among {len(fresh) + len(recorded)} completions, so "
            "there is nothing to repair; skip this stage, or raise dpo.fresh_prompts"
        )
    kinds = Counter(pair.reason for pair in pairs)
    say(f"dpo: {len(pairs)} pairs (" + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()) + ")")
    return pairs


def _asked(preference: PreferenceConfig) -> tuple[Endpoint, str]:
    """Whom to ask for a preference, and by which template; a mistake ends the stage before anything is sampled."""
    check_address(preference.base_url)
    own = preference.template
    template = TEMPLATE if own is None else read_template("dpo.preference.template", own, PLACES)
    return Endpoint(**preference.model_dump(exclude={"template"})), template


async def _preferred(
    endpoint: Endpoint, template: str, samples: list[Sampled], most: int, seed: int
) -> list[PreferencePair]:
    """Pairs by a preference judge; what it fails on is counted, and no pair."""
    client, failures = EndpointClient(endpoint), 0
    judge = PreferenceJudge(client, template)
    with bar("dpo: preferences", most, "question") as progress:

        async def compare(prompt: Prompt, first: str, second: str) -> str:
            nonlocal failures
            said = await judge.compare(prompt.messages, first, second)
            progress.advance()
            if isinstance(said, Failure):
                failures += 1
                return "tie"
            return said

        pairs = await preferred(samples, compare, most, seed)
    await client.close()
    if failures:
        say(f"dpo: {failures} comparisons failed and made no pair")
    return pairs


def _recorded(rundir: RunDir, prompts: dict[str, Prompt], pools: InstructionPools) -> list[Sampled]:
    """The rollouts of the last versions of the policy, with what mining needs of them."""

    def asked(row: dict[str, Any]) -> Prompt | None:
        prompt = prompts[row["prompt_id"]]
        return pools.as_drawn(prompt, row["instruction"])

    rows = [row for row in read_shards(shards(rundir.path)[-NEWEST_SHARDS:]) if row["prompt_id"] in prompts]
    newest = max((row["last_version"] for row in rows), default=0)
    return [
        Sampled(
            prompt,
            Rollout(
                row["token_ids"], row["loss_mask"], row["logprobs"], [], row["finish_reason"], row["text"],
                row["reward"], row["outcome"],
            ),
            row["draw_id"],
        )
        for row in rows
        if row["first_version"] > newest - RECENT_VERSIONS and (prompt := asked(row)) is not None
    ]  # fmt: skip


async def _fresh(
    config: Config, renderer: Renderer, pool: GeneratorPool, prompts: list[Prompt], scorer: Scorer
) -> list[Sampled]:
    """Judged samples of the first `dpo.fresh_prompts` prompts, with words left out of their instructions."""
    rng = random.Random(config.seed)
    pools = data.instructions(config)
    asked = [pools.for_draw(prompt, index) for index, prompt in enumerate(prompts[: config.dpo.fresh_prompts])]
    chosen = [drop_words(prompt, config.dpo.drop_words, rng) for prompt in asked]
    sampling = Sampling(
        temperature=config.dpo.temperature,
        max_tokens=config.rl.sampling.max_tokens,
        stop=tuple(config.rl.sampling.stop),
    )
    requests = [
        Request(renderer.prompt_tokens(prompt.messages), sampling, config.dpo.samples_per_prompt, config.seed + index)
        for index, prompt in enumerate(chosen)
    ]
    say(f"dpo: {config.dpo.samples_per_prompt} fresh samples of each of {len(chosen)} prompts")
    completions = await pool.generate(requests)
    limits = judged_at_once(config), config.generators.request_timeout
    judged = await asyncio.to_thread(score_completions, scorer, chosen, completions, *limits)
    return [Sampled(chosen[index], rollout) for index in judged for rollout in completions[index]]


def _write(path: Path, pairs: list[PreferencePair], renderer: Renderer) -> None:
    rows = [
        {
            "messages": json.dumps(list(pair.prompt.messages), ensure_ascii=False),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "reason": pair.reason,
            "prompt_ids": list(renderer.prompt_tokens(pair.prompt.messages)),
            "chosen_ids": pair.chosen_ids,
            "rejected_ids": pair.rejected_ids,
            "prompt_id": pair.prompt.prompt_id,
            "chosen_draw_id": pair.draw_ids[0],
            "rejected_draw_id": pair.draw_ids[1],
        }
        for pair in pairs
    ]
    write_rows(path, rows)
