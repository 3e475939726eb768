"""A judge behind an OpenAI-compatible endpoint, such as another vLLM server.

An answer is a JSON object with a label, by structured output where the server knows it. Time-outs, refused connections,
429 and 5xx are tried again with growing pauses, by the `openai` client; so is an answer that is no such object. What
fails to the end is a `Failure`, never a score.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from judges.llm import DIFFICULTY, LABELS, Verdict, filled
from rollouts.errors import ConfigError
from rollouts.types import Message

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
MAX_TOKENS = 256
SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string", "enum": list(LABELS)}},
    "required": ["label"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Failure:
    """A demonstration that could not be judged. Example: `Failure("timed out, 5 times")`."""

    reason: str


@dataclass(frozen=True)
class Endpoint:
    """Where the judge is asked, and how long.

    Example: `Endpoint("http://127.0.0.1:8000/v1", "meta-llama/Llama-3.3-70B-Instruct")`

    `key_env` names the environment variable with the key; `timeout` is in seconds, of each try; `samples` answers are
    asked for, whose votes make the score.
    """

    base_url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 16
    retries: int = 5
    timeout: float = 60.0
    samples: int = 1


class EndpointJudge:
    """Judges demonstrations by asking."""

    def __init__(
        self, endpoint: Endpoint, template: str, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep
    ) -> None:
        """Connects to nothing yet.

        Args:
            endpoint: whom to ask.
            template: text with `{prompt}` and `{response}`.
            sleep: pauses between tries at an answer that makes no sense.

        Raises:
            ConfigError: the address is none.
        """
        from openai import AsyncOpenAI

        if not endpoint.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"judge.endpoint.base_url={endpoint.base_url}: expected http://… or https://…")
        self._endpoint, self._template, self._sleep = endpoint, template, sleep
        self._client = AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=os.environ.get(endpoint.key_env) or "none",  # a server of one's own wants none
            max_retries=endpoint.retries,
            timeout=endpoint.timeout,
        )
        self._free = asyncio.Semaphore(endpoint.concurrency)

    @property
    def name(self) -> str:
        """Of the judge, for the verdicts."""
        return f"{self._endpoint.model} at {self._endpoint.base_url}"

    async def judge(self, demonstrations: Sequence[Sequence[Message]]) -> list[Verdict | Failure]:
        """A verdict or a failure for each demonstration, in order."""
        return await asyncio.gather(*map(self._judge, demonstrations))

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()

    async def _judge(self, messages: Sequence[Message]) -> Verdict | Failure:
        text = filled(self._template, messages)
        answers = await asyncio.gather(*(self._ask(text) for _ in range(self._endpoint.samples)))
        labels = [answer for answer in answers if not isinstance(answer, Failure)]
        if not labels:
            return next(answer for answer in answers if isinstance(answer, Failure))
        votes = Counter(labels)
        shares = {label: votes[label] / len(labels) for label in LABELS}
        score = sum(DIFFICULTY[label] * share for label, share in shares.items())
        return Verdict(score, max(LABELS, key=lambda label: shares[label]), "", self.name, shares)

    async def _ask(self, text: str) -> str | Failure:
        """A label."""
        from openai import APIError

        tries, answer = self._endpoint.retries + 1, ""
        for attempt in range(tries):
            if attempt:
                await self._sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)))
            try:
                async with self._free:
                    said = await self._client.chat.completions.create(
                        model=self._endpoint.model,
                        messages=[{"role": "user", "content": text}],
                        max_completion_tokens=MAX_TOKENS,
                        response_format={
                            "type": "json_schema",
                            "json_schema": {"name": "verdict", "schema": SCHEMA, "strict": True},
                        },
                    )
            except APIError as error:  # which the client has tried again where that could help
                return Failure(f"{type(error).__name__}: {error}"[:300])
            except (ValueError, TypeError) as error:  # half a response
                answer = f"{type(error).__name__}: {error}"
                continue
            answer = _content(said)
            label = _label(answer)
            if label is not None:
                return label
        return Failure(f"no label in {tries} answers; the last was {answer[:120]!r}")


def _content(said: Any) -> str:
    """What the model said; empty where a response lacks it."""
    try:
        return said.choices[0].message.content or ""
    except (AttributeError, IndexError, TypeError):
        return ""


def _label(answer: str) -> str | None:
    """The label in an answer: a JSON object, also within a text, or the bare word."""
    start, end = answer.find("{"), answer.rfind("}")
    try:
        found = json.loads(answer[start : end + 1])["label"] if start >= 0 else answer
    except (ValueError, KeyError, TypeError):
        return None
    label = found.strip().strip(".\"'").lower() if isinstance(found, str) else None
    return label if label in LABELS else None
