"""Pools of system instructions: each draw of a prompt is asked under one of its capability's.

A policy that is trained under one wording alone forgets to read instructions. So the wording varies from draw to draw,
and some wordings are held out from training, to measure whether instructions are still followed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from curricula.rows import Row, load_rows, short
from rollouts.errors import DataError
from rollouts.types import Prompt


@dataclass(frozen=True)
class Instruction:
    """A system instruction.

    Example: `Instruction("ans-0", "Put the answer in <ans></ans>.", ("<ans>", "</ans>"))`

    `answer_format` is the asked `(left, right)`; None: the prompt's own stays. Without `train` it is asked in
    evaluations only.
    """

    instruction_id: str
    text: str
    answer_format: tuple[str, str] | None = None
    train: bool = True

    def ask(self, prompt: Prompt) -> Prompt:
        """The prompt under this instruction instead of its own; its identity stays, so statistics are shared."""
        rest = [message for message in prompt.messages if message["role"] != "system"]
        return replace(
            prompt,
            messages=({"role": "system", "content": self.text}, *rest),
            answer_format=self.answer_format or prompt.answer_format,
            instruction=self.instruction_id,
            instruction_trained=self.train,
        )


class InstructionPools:
    """The instructions of each capability; prompts of a capability without a pool stay as they are."""

    def __init__(self, pools: Mapping[str, Sequence[Instruction]] | None = None, seed: int = 0) -> None:
        """Takes the pools, of which each has an instruction to train with.

        Args:
            pools: by capability.
            seed: of the run, which draws depend on.
        """
        self._pools = {capability: tuple(pool) for capability, pool in (pools or {}).items()}
        self._seed = seed

    @property
    def capabilities(self) -> list[str]:
        """Those that have a pool."""
        return list(self._pools)

    def of(self, capability: str, trained: bool = False) -> list[Instruction]:
        """The instructions of a capability, or only those that are trained with."""
        return [instruction for instruction in self._pools.get(capability, ()) if instruction.train or not trained]

    def for_draw(self, prompt: Prompt, draw_id: int) -> Prompt:
        """A prompt as one draw of the run asks it: seed and draw id decide, so a resumed run asks the same again."""
        return self._choose(prompt, self.of(prompt.capability, trained=True), f"{self._seed}/{draw_id}")

    def for_evaluation(self, prompt: Prompt) -> Prompt:
        """A held-out prompt under any instruction of its capability: the same one in every evaluation of every run."""
        return self._choose(prompt, self.of(prompt.capability), prompt.prompt_id)

    def as_drawn(self, prompt: Prompt, instruction_id: str | None, trained: bool = False) -> Prompt | None:
        """A prompt as a recorded draw asked it; None where that instruction is gone from the pool, or from those that
        are trained with.
        """
        found = [each for each in self.of(prompt.capability, trained) if each.instruction_id == instruction_id]
        if found:
            return found[0].ask(prompt)
        return prompt if instruction_id == prompt.instruction else None

    @staticmethod
    def _choose(prompt: Prompt, pool: Sequence[Instruction], key: str) -> Prompt:
        return random.Random(f"{key}/instruction").choice(pool).ask(prompt) if pool else prompt


def load_instructions(path: str, what: str = "data.instructions") -> dict[str, list[Instruction]]:
    """Pools from rows with `capability`, `id`, `text` and, where wanted, `format` and `train`.

    Args:
        path: as for `load_rows`.
        what: the setting that errors name.

    Raises:
        DataError: one line with file, line and field of the first bad row.
    """
    pools: dict[str, list[Instruction]] = {}
    for row in load_rows(path, what):
        capability, instruction = _instruction(row)
        pool = pools.setdefault(capability, [])
        if any(other.instruction_id == instruction.instruction_id for other in pool):
            raise DataError(f"{row.place}: field 'id': {instruction.instruction_id!r} is in the pool already")
        pool.append(instruction)
    for capability, pool in pools.items():
        if not any(instruction.train for instruction in pool):
            raise DataError(
                f"{path}: capability {capability!r} has no instruction but held-out ones; add one to train with"
            )
    return pools


FIELDS = ("capability", "id", "text", "format", "train")
"""Of a row."""


def _instruction(row: Row) -> tuple[str, Instruction]:
    """The capability and the instruction of a row."""
    for name in row.values:
        if name not in FIELDS:
            raise DataError(f"{row.place}: field '{name}': unknown; known are {', '.join(FIELDS)}")
    left_right = _field(row, "format", _is_format, "the two texts [left, right]", None)
    train = _field(row, "train", lambda value: isinstance(value, bool), "true or false", True)
    instruction = Instruction(
        instruction_id=_field(row, "id", _is_text, "a text", None),
        text=_field(row, "text", _is_text, "a text", None),
        answer_format=tuple(left_right) if left_right else None,
        train=train,
    )
    return _field(row, "capability", _is_text, "a text", "default"), instruction


def _field(row: Row, name: str, good: Callable[[Any], bool], expected: str, default: Any) -> Any:
    """A row's value, or the default where it has none."""
    value = row.values.get(name)
    value = default if value is None else value
    if good(value):
        return value
    if row.values.get(name) is None:
        raise DataError(f"{row.place}: no field '{name}' (fields there: {', '.join(row.values)})")
    raise DataError(f"{row.place}: field '{name}': expected {expected}, found {short(value)}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_format(value: Any) -> bool:
    if value is None:
        return True
    pair = isinstance(value, list | tuple) and len(value) == 2
    return pair and all(isinstance(text, str) for text in value) and bool(value[0])
