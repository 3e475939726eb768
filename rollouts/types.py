"""The nouns of the pipeline: `Prompt`, `Rollout`, `RolloutGroup`.

Dimensions: G = rollouts in a group, T = sampled tokens of one rollout.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = dict[str, str]
Span = tuple[int, int, int]
"""`(start, end, policy_version)`: tokens `start:end` were sampled under that version."""


def content_id(messages: Sequence[Message], answer: object, tests: object) -> str:
    """A stable 16-digit identity of a prompt's content: an edited prompt is another prompt."""
    text = json.dumps([list(messages), answer, tests], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def question_id(messages: Sequence[Message]) -> str:
    """The identity of what the user says first: the same for a prompt and for a demonstration of an answer to it."""
    asked = next((message for message in messages if message["role"] == "user"), messages[0])
    return content_id([asked], None, None)


@dataclass(frozen=True)
class Prompt:
    """A prompt with what is needed to verify an answer to it.

    Example: `Prompt("9f…", ({"role": "user", "content": "47+38"},), capability="math", answer="85")`

    `tests` of code are pairs `{"input", "output"}` or Python source. `answer_format` is the asked `(left, right)`
    delimiters, e.g. `("<ans>", "</ans>")` or `("Answer:", "")`. `instruction` is the id of the system instruction,
    `instruction_trained` whether training uses that one too (None: not known). `extra` carries every other field of the
    row to a user's own reward.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    capability: str = "default"
    answer: str | None = None
    tests: tuple[Mapping[str, Any] | str, ...] = ()
    answer_format: tuple[str, str] | None = None
    difficulty: int | None = None
    instruction: str | None = None
    instruction_trained: bool | None = None
    images: tuple[str, ...] = ()
    modality: str = "text"
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def domain(self) -> str:
        """What quotas are of: the capability, with the modality where that is not text. Example: `"charts/image"`."""
        return self.capability if self.modality == "text" else f"{self.capability}/{self.modality}"


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn; names, ranges and meanings are vLLM's `SamplingParams`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    max_tokens: int = 96
    stop: tuple[str, ...] = ()


@dataclass
class Rollout:
    """One sampled completion, as tokens.

    Example: `Rollout([7, 9, 5], [True, True, True], [-0.1, -0.7, -0.0], [(0, 3, 12)], "stop", "85")`
    """

    token_ids: list[int]  # [T]
    loss_mask: list[bool]  # [T], False on tokens that the policy did not sample
    logprobs: list[float]  # [T], of the behaviour policy, at the sampling temperature
    policy_versions: list[Span]  # spans that cover 0:T
    finish_reason: str  # "stop" or "length"; "" where there are more tokens to come
    text: str
    reward: float = 0.0
    outcome: bool = False
    breakdown: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    turns: list[Message] = field(default_factory=list)  # what was said after the prompt, where an environment is set

    @property
    def truncated(self) -> bool:
        """Whether the completion ran into the token limit."""
        return self.finish_reason == "length"


@dataclass
class RolloutGroup:
    """The G rollouts of one draw of a prompt."""

    draw_id: int
    prompt: Prompt
    prompt_token_ids: list[int]
    rollouts: list[Rollout]  # [G]
    version: int | None = None  # that the generators held at the draw; None: not known

    @property
    def versions(self) -> set[int]:
        """The policy versions that its tokens were sampled under."""
        return {version for rollout in self.rollouts for _, _, version in rollout.policy_versions}


@dataclass(frozen=True)
class Score:
    """What a verifier or judge says of one completion; `outcome` is solved-or-not before any shaping."""

    reward: float
    outcome: bool
    reason: str = ""
    breakdown: Mapping[str, float] = field(default_factory=dict)


class Scorer(Protocol):
    """Scores the completions of one prompt; `rollouts` knows neither judges nor curricula."""

    def __call__(self, prompt: Prompt, completions: Sequence[Rollout]) -> list[Score]:
        """One score for each completion, in order.

        Raises:
            JudgeError: judging itself failed; never a score of zero.
        """
        ...
