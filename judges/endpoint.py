"""Models behind an OpenAI-compatible endpoint, such as another vLLM server, that judge demonstrations or grade answers.

An answer is a JSON object, by structured output where the server knows it. Time-outs, refused connections, 429 and 5xx
are tried again with growing pauses, by the `openai` client; so is an answer that is no such object. What fails to the
end is a `Failure`, never a score.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from judges.llm import DIFFICULTY, LABELS, Failure, Verdict, filled
from rollouts.errors import ConfigError
from rollouts.types import Message

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
UNSTRUCTURED = re.compile("response_format|json_schema|structured|guided", re.IGNORECASE)
"""Of such a thing a server complains that has no structured output."""
GRADES = 10
"""The best grade; the worst is 0."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked, and how long.

    Example: `Endpoint("http://127.0.0.1:8000/v1", "meta-llama/Llama-3.3-70B-Instruct")`

    `key_env` names the environment variable with the key; `timeout` is in seconds, of each try; an answer has at most
    `max_tokens`; `samples` answers are asked for, whose votes or mean make the score; of half of them or fewer there is
    none.
    """

    base_url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    concurrency: int = 16
    retries: int = 5
    timeout: float = 60.0
    max_tokens: int = 1024
    samples: int = 1


_FIRST = threading.Lock()
"""Of many threads that ask at once, one makes the loop."""
Grade = float | Failure
"""From 0 to 1, or why there is none."""


class EndpointClient:
    """Asks for a value in JSON until an answer makes sense. Of one event loop; `close` ends its connections."""

    def __init__(self, endpoint: Endpoint, sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep) -> None:
        """Connects to nothing yet.

        Args:
            endpoint: whom to ask.
            sleep: pauses between tries at an answer that makes no sense.

        Raises:
            ConfigError: the address is none.
        """
        from openai import AsyncOpenAI

        check_address(endpoint.base_url)
        self.endpoint, self._sleep = endpoint, sleep
        self._client = AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=os.environ.get(endpoint.key_env) or "none",  # a server of one's own wants none
            max_retries=endpoint.retries,
            timeout=endpoint.timeout,
        )
        self._free = asyncio.Semaphore(endpoint.concurrency)
        self._structured = True

    @property
    def name(self) -> str:
        """Of the model, for verdicts."""
        return f"{self.endpoint.model} at {self.endpoint.base_url}"

    async def ask(self, text: str, key: str, schema: Mapping[str, Any], read: Callable[[Any], T | None]) -> T | Failure:
        """The value that an answer has under a key.

        Args:
            text: what the model is asked.
            key: of the JSON object that it is to answer with.
            schema: of the value, in JSON Schema.
            read: makes a value of it; None: it is none.
        """
        from openai import APIError, BadRequestError

        whole = {"type": "object", "properties": {key: schema}, "required": [key], "additionalProperties": False}
        wanted = {"type": "json_schema", "json_schema": {"name": key, "schema": whole, "strict": True}}
        tries, answer = self.endpoint.retries + 1, ""
        for attempt in range(tries):
            if attempt:
                await self._sleep(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)))
            try:
                async with self._free:
                    said = await self._client.chat.completions.create(
                        model=self.endpoint.model,
                        messages=[{"role": "user", "content": text}],
                        max_completion_tokens=self.endpoint.max_tokens,
                        **({"response_format": wanted} if self._structured else {}),  # type: ignore[call-overload]
                    )
            except BadRequestError as error:
                if not (self._structured and UNSTRUCTURED.search(str(error))):
                    return Failure(f"{type(error).__name__}: {error}"[:300])
                self._structured = False
                return await self.ask(text, key, schema, read)
            except APIError as error:  # which the client has tried again where that could help
                return Failure(f"{type(error).__name__}: {error}"[:300])
            except (ValueError, TypeError) as error:  # half a response
                answer = f"{type(error).__name__}: {error}"
                continue
            answer = _content(said)
            value = read(_value(answer, key))
            if value is not None:
                return value
        return Failure(f"no {key} in {tries} answers; the last was {answer[:120]!r}")

    async def samples(
        self, text: str, key: str, schema: Mapping[str, Any], read: Callable[[Any], T | None]
    ) -> list[T] | Failure:
        """`endpoint.samples` answers, less those that failed; a failure unless more than half are left."""
        found = await asyncio.gather(*(self.ask(text, key, schema, read) for _ in range(self.endpoint.samples)))
        values = [each for each in found if not isinstance(each, Failure)]
        if 2 * len(values) > len(found):
            return values
        reason = next(each.reason for each in found if isinstance(each, Failure))
        return Failure(f"{len(found) - len(values)} of {len(found)} answers failed: {reason}" if values else reason)

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.close()


def check_address(base_url: str) -> None:
    """Raises ConfigError if the address is none."""
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"endpoint.base_url={base_url}: expected http://… or https://…")


class EndpointJudge:
    """Judges demonstrations."""

    def __init__(self, client: EndpointClient, template: str) -> None:
        """`template` is a text with `{prompt}` and `{response}`."""
        self.name, self._client, self._template = client.name, client, template

    async def judge(self, messages: Sequence[Message]) -> Verdict | Failure:
        """The verdict on a demonstration, or why there is none."""
        text = filled(self._template, messages)
        labels = await self._client.samples(text, "label", {"type": "string", "enum": list(LABELS)}, _label)
        if isinstance(labels, Failure):
            return labels
        votes = Counter(labels)
        shares = {label: votes[label] / len(labels) for label in LABELS}
        score = sum(DIFFICULTY[label] * share for label, share in shares.items())
        label, missing = max(LABELS, key=lambda label: shares[label]), self._client.endpoint.samples - len(labels)
        return Verdict(score, label, "", self.name, shares, missing)


class EndpointGrader:
    """Grades answers by a criterion."""

    def __init__(self, client: EndpointClient, template: str) -> None:
        """`template` is a text with `{prompt}` and `{response}`, which asks for a grade from 0 to 10."""
        self._client, self._template = client, template

    async def grade(self, messages: Sequence[Message]) -> Grade:
        """The grade of a conversation that ends with the answer, from 0 to 1, or why there is none."""
        schema = {"type": "integer", "minimum": 0, "maximum": GRADES}
        grades = await self._client.samples(filled(self._template, messages), "grade", schema, _grade)
        return grades if isinstance(grades, Failure) else sum(grades) / len(grades) / GRADES


def endpoint_grades(
    endpoint: Endpoint, template: str, limit: float
) -> Callable[[Sequence[Sequence[Message]]], list[Grade]]:
    """Grades several conversations at once; for code that knows no event loop.

    All callers of a process share the endpoint's connections, so that `endpoint.concurrency` holds for all together.

    Args:
        endpoint: whom to ask.
        template: as for `EndpointGrader`.
        limit: seconds after which an answer counts as failed, its turn at the endpoint included.
    """

    async def grade_all(conversations: Sequence[Sequence[Message]]) -> list[Grade]:
        grader = EndpointGrader(_shared_client(endpoint), template)
        return await asyncio.gather(*(within(limit, grader.grade(each)) for each in conversations))

    def grades(conversations: Sequence[Sequence[Message]]) -> list[Grade]:
        with _FIRST:
            loop = _shared_loop()
        return asyncio.run_coroutine_threadsafe(grade_all(conversations), loop).result()

    return grades


async def within(limit: float, grading: Awaitable[Grade]) -> Grade:
    """The grade, or a failure if there is none after `limit` seconds."""
    try:
        return await asyncio.wait_for(grading, limit)
    except TimeoutError:
        return Failure(f"no answer within {limit:g} s, waiting for a turn included")


@cache
def _shared_loop() -> asyncio.AbstractEventLoop:
    """An event loop in a thread of its own, which ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="endpoints", daemon=True).start()
    return loop


@cache
def _shared_client(endpoint: Endpoint) -> EndpointClient:
    """Of the shared loop, from which alone it is called."""
    return EndpointClient(endpoint)


def _content(said: Any) -> str:
    """What the model said; empty where a response lacks it."""
    try:
        return said.choices[0].message.content or ""
    except (AttributeError, IndexError, TypeError):
        return ""


def _value(answer: str, key: str) -> Any:
    """What an answer has under the key: as a JSON object, also within a text; else the whole of it."""
    start, end = answer.find("{"), answer.rfind("}")
    try:
        return json.loads(answer[start : end + 1])[key] if start >= 0 else answer
    except (ValueError, KeyError, TypeError):
        return None


def _label(value: Any) -> str | None:
    label = value.strip().strip(".\"'").lower() if isinstance(value, str) else None
    return label if label in LABELS else None


def _grade(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    return value if type(value) is int and 0 <= value <= GRADES else None
