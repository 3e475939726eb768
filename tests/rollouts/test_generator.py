"""The generator's thread around a made-up engine: what it tells of completions that are under way, and its end."""

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from rollouts import generator
from rollouts.errors import EngineError
from rollouts.generator import EngineSettings, Generator, Request
from rollouts.types import Rollout, Sampling, Span


class Engine:
    """Gives each request a token in every step. The first request ends after three, the others once they may."""

    def __init__(self) -> None:
        self.others_may_end = threading.Event()
        self.output_processor = SimpleNamespace(request_states={})

    def get_tokenizer(self) -> Any:
        return SimpleNamespace(batch_decode=lambda ids, **_: [" ".join(map(str, each)) for each in ids])

    def reset_prefix_cache(self, reset_running_requests: bool) -> None: ...

    def set_weight_version(self, version: str) -> None:
        self.version = version

    def add_request(self, request_id: str, *_: Any, **__: Any) -> None:
        ids: list[int] = []
        self.output_processor.request_states[request_id] = SimpleNamespace(
            external_req_id=request_id, request_index=0, parent_req=None, weight_version_starts=[(self.version, 0)],
            detokenizer=SimpleNamespace(output_token_ids=ids),
            logprobs_processor=SimpleNamespace(logprobs=SimpleNamespace(token_ids=ids, logprobs=[])),
        )  # fmt: skip

    def has_unfinished_requests(self) -> bool:
        return bool(self.output_processor.request_states)

    def step(self) -> list[Any]:
        time.sleep(0.001)
        outputs = []
        for request_id, state in list(self.output_processor.request_states.items()):
            ids, logprobs = state.detokenizer.output_token_ids, state.logprobs_processor.logprobs
            ids.append(7)
            logprobs.logprobs.append(-2.0)
            if (request_id == "0" and len(ids) == 3) or self.others_may_end.is_set():
                del self.output_processor.request_states[request_id]
                span = SimpleNamespace(start=0, end=len(ids), version=self.version)
                completion = SimpleNamespace(
                    index=0, token_ids=ids, logprobs=logprobs, weight_versions=[span], finish_reason="stop"
                )
                outputs.append(SimpleNamespace(request_id=request_id, finished=True, outputs=[completion]))
        return outputs


async def test_what_has_ended_of_a_draw_that_is_gone_on_from_is_told_until_its_others_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine()
    monkeypatch.setattr(generator, "_start_engine", lambda *_: engine)
    monkeypatch.setattr(generator, "_sampling_params", lambda _: None)
    made = Generator("model", EngineSettings(), version=3)
    spans: list[Span] = [(0, 2, 1)]
    begun = tuple(Rollout([5, 6], [True] * 2, [-1.0] * 2, spans, "", "") for _ in range(2))
    making = asyncio.ensure_future(made.generate(Request((1,), Sampling(max_tokens=9), 3, begun=begun, draw_id=4)))
    await asyncio.sleep(0)
    whole = Rollout([5, 6, 7, 7, 7], [True] * 5, [-1.0] * 2 + [-2.0] * 3, [(0, 2, 1), (2, 5, 3)], "stop", "5 6 7 7 7")
    while True:
        told = (await made.under_way())[4]
        if len(told[2].token_ids) > 3:
            break
    assert told[0] == whole
    assert told[1].token_ids[:2] == [5, 6]
    assert (told[1].finish_reason, told[2].finish_reason) == ("", "")
    engine.others_may_end.set()
    assert (await making)[0] == whole
    assert await made.under_way() == {}


async def test_an_engine_that_fails_tells_who_waits_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, ended = Engine(), threading.Event()

    def step() -> list[Any]:
        raise MemoryError("out of memory")

    monkeypatch.setattr(engine, "step", step)
    monkeypatch.setattr(generator, "_start_engine", lambda *_: engine)
    monkeypatch.setattr(generator, "_sampling_params", lambda _: None)
    monkeypatch.setattr(generator, "LAST_WORDS", 0.01)
    made = Generator("model", EngineSettings(), 0, ended.set)
    await made.alive()
    assert not ended.is_set()
    for asked in (made.generate(Request((1,), Sampling())), made.ready(), made.alive()):
        with pytest.raises(EngineError, match=r"^the engine stopped: MemoryError\('out of memory'\)$"):
            await asked
    assert ended.wait(10)
