"""The rows of a run, read as the configuration names them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from curricula.datasets import Demonstration, iterate_rows, load_demonstrations, load_prompts, prompt_reader
from curricula.instructions import Instruction, InstructionPools, load_instructions
from curricula.stream import PromptStream
from curricula.window import PATIENCE, PromptWindow
from judges.verifiers import lacking
from posttrain.config import Config, DataSource, resolve_data
from rollouts.errors import DataError
from rollouts.generator import Conversation
from rollouts.renderer import Renderer
from rollouts.types import Prompt

_NOT_SET = "data.{}.path is not set; name a JSONL or Parquet file, or a `datasets` name"
_NO_IMAGES = "an image, but no stage reads images yet; leave out the row or the field"


def prompts(config: Config, what: str, renderer: Renderer, max_tokens: int, say: Callable[[str], None]) -> list[Prompt]:
    """The prompts of `data.prompts` or `data.heldout` that leave room for an answer of `max_tokens`.

    Where `data.prompts.window` is set, only its first ones.

    Held-out ones are under an instruction of their capability's pool already, others have their own still.

    Raises:
        DataError: a file, row or field is wrong, a prompt has an image, or no prompt is short enough.
    """
    source: DataSource = getattr(config.data, what)
    if not source.path:
        raise DataError(_NOT_SET.format(what))
    if source.window is not None:
        found = _stream(config, renderer, max_tokens).first(source.window, PATIENCE)
        say(f"{source.path}: the first {len(found)} prompts (data.prompts.window)")
        return found
    pools = instructions(config)
    room = config.max_model_len - max_tokens
    found = load_prompts(
        resolve_data(source.path),
        source.fields,
        source.limit,
        constants=source.constants,
        answer_pattern=source.answer_pattern,
        system=source.system,
        what=f"data.{what}",
        no_images=_NO_IMAGES,
        lacking=_lacking(config),
    )
    if what == "heldout":
        found = [pools.for_evaluation(prompt) for prompt in found]
        fitting = renderer.fitting(found, room)
    else:
        _tell_missing(config, found, say)
        fits = _fits_under_any(pools, renderer, room)
        fitting = [prompt for prompt in found if fits(prompt)]
    if not fitting:
        raise DataError(
            f"{source.path}: no prompt leaves room for {max_tokens} tokens within max_model_len={config.max_model_len}"
        )
    if len(fitting) < len(found):
        say(f"{source.path}: left out {len(found) - len(fitting)} of {len(found)} prompts longer than {room} tokens")
    return fitting


def check_quotas(config: Config, found: Sequence[Prompt], say: Callable[[str], None] = lambda _: None) -> None:
    """Checks that RL has prompts of each capability that it is to draw; a window on a stream checks its own. Tells how
    many there are of others.

    Raises:
        DataError: `rl.quotas` names another.
    """
    there = sorted({prompt.domain for prompt in found})
    missing = sorted(set(config.rl.quotas or ()) - set(there))
    if missing and config.data.prompts.window is None:
        raise DataError(
            f"{config.data.prompts.path}: no prompt of the capability '{missing[0]}' (there: {', '.join(there)}); "
            "rl.quotas names it: add some, or take it out of there"
        )
    others = Counter(prompt.domain for prompt in found if config.rl.quotas and prompt.domain not in config.rl.quotas)
    if others:
        names = ", ".join(sorted(others))
        say(f"{config.data.prompts.path}: left out {others.total()} prompts of capabilities not in rl.quotas: {names}")


def window(config: Config, renderer: Renderer, say: Callable[[str], None], checkpoint: Path | None) -> PromptWindow:
    """The window on `data.prompts` that RL draws from, as a checkpoint keeps it, if there is one.

    Raises:
        DataError: as `prompts`, of the rows that are read.
        CheckpointError: the checkpoint's is damaged.
    """
    source, max_tokens = config.data.prompts, config.rl.sampling.max_tokens
    assert source.window is not None
    stream = _stream(config, renderer, max_tokens)
    found = PromptWindow(stream, source.window, config.rl.quotas, checkpoint)
    _tell_missing(config, found.prompts, say)
    say(
        f"{source.path}: read as it is needed, at most {source.window} prompts at a time; {found} from "
        f"{stream.position:,} rows so far" + f" of pass {stream.passes + 1}" * bool(stream.passes)
    )
    return found


def _stream(config: Config, renderer: Renderer, max_tokens: int) -> PromptStream:
    """The prompts of `data.prompts`, row by row, with those that leave no room for `max_tokens`.

    Raises:
        DataError: no path is set, or a field is none of ours.
    """
    source = config.data.prompts
    if not source.path:
        raise DataError(_NOT_SET.format("prompts"))
    path = resolve_data(source.path)
    read = prompt_reader(
        source.fields,
        constants=source.constants,
        answer_pattern=source.answer_pattern,
        system=source.system,
        no_images=_NO_IMAGES,
        lacking=_lacking(config),
    )
    return PromptStream(
        source.path,
        lambda: islice(iterate_rows(path, "data.prompts", streaming=True), source.limit),
        read,
        _fits_under_any(instructions(config), renderer, config.max_model_len - max_tokens),
    )


def _tell_missing(config: Config, found: Sequence[Prompt], say: Callable[[str], None]) -> None:
    named = {"data.instructions": instructions(config).capabilities}
    if config.rubric is not None:
        named["rubric.capabilities"] = config.rubric.capabilities or []
    for key, capabilities in named.items():
        if missing := set(capabilities) - {prompt.capability for prompt in found}:
            say(f"{key}: no prompt of data.prompts has the capability {', '.join(sorted(missing))}")


def _fits_under_any(pools: InstructionPools, renderer: Renderer, room: int) -> Callable[[Prompt], bool]:
    """Whether a prompt fits under the longest instruction that a draw may ask it under."""

    def length(instruction: Instruction) -> int:
        return len(renderer.prompt_tokens([{"role": "system", "content": instruction.text}]))

    longest = {name: max(pools.of(name, trained=True), key=length) for name in pools.capabilities}

    def fits(prompt: Prompt) -> bool:
        asked = longest[prompt.capability].ask(prompt) if prompt.capability in longest else prompt
        return bool(renderer.fitting([asked], room))

    return fits


def instructions(config: Config) -> InstructionPools:
    """The pools of `data.instructions`; none where it is not set.

    Raises:
        DataError: a file, row or field is wrong.
    """
    setting = config.data.instructions
    if setting.path:
        return InstructionPools(load_instructions(resolve_data(setting.path)), config.seed)
    pools = {
        capability: [
            Instruction(each.id, each.text, (each.format[0], each.format[1]) if each.format else None, each.train)
            for each in pool
        ]
        for capability, pool in setting.pools.items()
    }
    return InstructionPools(pools, config.seed)


def demonstrations(config: Config) -> list[Demonstration]:
    """The rows of `data.demonstrations`.

    Raises:
        DataError: a file, row or field is wrong.
    """
    source = config.data.demonstrations
    if not source.path:
        raise DataError("data.demonstrations.path is not set; name a JSONL or Parquet file, or a `datasets` name")
    return load_demonstrations(
        resolve_data(source.path),
        source.fields,
        source.limit,
        constants=source.constants,
        system=source.system,
        what="data.demonstrations",
        no_images=_NO_IMAGES,
    )


def conversation(config: Config, prompt: Prompt) -> Conversation | None:
    """What a request needs for rollouts of several turns; None where no environment is set."""
    if config.environment is None:
        return None
    return Conversation(prompt, config.environment, tuple(sys.path))


def _lacking(config: Config) -> Callable[[Prompt], str]:
    """What a prompt lacks for the reward, which would else end a run when it is drawn."""
    rubric = config.rubric

    def lack(prompt: Prompt) -> str:
        if rubric is None or (rubric.capabilities is not None and prompt.capability not in rubric.capabilities):
            return lacking(config.reward, prompt)
        rewards = [criterion.reward for criterion in rubric.criteria.values() if criterion.reward]
        return next(filter(None, (lacking(name, prompt) for name in rewards)), "")

    return lack
