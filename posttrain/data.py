"""The rows of a run, read as the configuration names them."""

from __future__ import annotations

import sys
from collections.abc import Callable

from curricula.datasets import Demonstration, load_demonstrations, load_prompts
from curricula.instructions import Instruction, InstructionPools, load_instructions
from posttrain.config import Config, DataSource, resolve_data
from rollouts.errors import DataError
from rollouts.generator import Conversation
from rollouts.renderer import Renderer
from rollouts.types import Prompt


def prompts(config: Config, what: str, renderer: Renderer, max_tokens: int, say: Callable[[str], None]) -> list[Prompt]:
    """The prompts of `data.prompts` or `data.heldout` that leave room for an answer of `max_tokens`.

    Held-out ones are under an instruction of their capability's pool already, others have their own still.

    Raises:
        DataError: a file, row or field is wrong, a prompt has an image, or no prompt is short enough.
    """
    source: DataSource = getattr(config.data, what)
    if not source.path:
        raise DataError(f"data.{what}.path is not set; name a JSONL or Parquet file, or a `datasets` name")
    found = load_prompts(
        resolve_data(source.path),
        source.fields,
        source.limit,
        constants=source.constants,
        answer_pattern=source.answer_pattern,
        system=source.system,
        what=f"data.{what}",
        no_images=_no_images(config),
    )
    pools = instructions(config)
    room = config.max_model_len - max_tokens
    if what == "heldout":
        found = [pools.for_evaluation(prompt) for prompt in found]
        fitting = renderer.fitting(found, room)
    else:
        if missing := set(pools.capabilities) - {prompt.capability for prompt in found}:
            say(f"data.instructions: no prompt of data.{what} has the capability {', '.join(sorted(missing))}")
        fitting = _fitting_under_any(pools, renderer, found, room)
    if not fitting:
        raise DataError(
            f"{source.path}: no prompt leaves room for {max_tokens} tokens within max_model_len={config.max_model_len}"
        )
    if len(fitting) < len(found):
        say(f"{source.path}: left out {len(found) - len(fitting)} of {len(found)} prompts longer than {room} tokens")
    return fitting


def _fitting_under_any(pools: InstructionPools, renderer: Renderer, found: list[Prompt], room: int) -> list[Prompt]:
    """The prompts that fit under the longest instruction that a draw may ask them under."""

    def length(instruction: Instruction) -> int:
        return len(renderer.prompt_tokens([{"role": "system", "content": instruction.text}]))

    longest = {name: max(pools.of(name, trained=True), key=length) for name in pools.capabilities}
    asked = [longest[prompt.capability].ask(prompt) if prompt.capability in longest else prompt for prompt in found]
    fitting = {prompt.prompt_id for prompt in renderer.fitting(asked, room)}
    return [prompt for prompt in found if prompt.prompt_id in fitting]


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
        no_images=_no_images(config),
    )


def conversation(config: Config, prompt: Prompt) -> Conversation | None:
    """What a request needs for rollouts of several turns; None where no environment is set."""
    if config.environment is None:
        return None
    return Conversation(prompt, config.environment, tuple(sys.path))


def _no_images(config: Config) -> str:
    return f"an image, but {config.model} has no vision; drop the field or use a vision model"
