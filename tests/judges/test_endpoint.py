"""A judge behind an endpoint that fails in every way that endpoints fail; a real server, real requests."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from judges.endpoint import Endpoint, EndpointClient, EndpointGrader, EndpointJudge, check_address
from judges.llm import Failure, Verdict
from judges.verdict_cache import VerdictCache, key_of
from rollouts.errors import ConfigError, DataError
from tests.judges.server import Server, completion, serving

CONVERSATION = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


async def no_pause(_: float) -> None:
    pass


async def judged(server: Server, *words: str, retries: int = 1, samples: int = 1, limit: float = 5.0) -> list[Any]:
    endpoint = Endpoint(server.url, "m", "JUDGE_KEY", retries=retries, timeout=limit, samples=samples)
    client = EndpointClient(endpoint, no_pause)
    judge = EndpointJudge(client, "{prompt}: {response}")
    conversations = [[{"role": "user", "content": word}, CONVERSATION[1]] for word in words]
    try:
        return await asyncio.gather(*map(judge.judge, conversations))
    finally:
        await client.close()


async def test_a_label_becomes_a_verdict(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    server.scripts = {"one": ["hard"], "two": ["easy"]}
    hard, easy = await judged(server, "one", "two")
    assert (hard.score, hard.label, easy.score) == (1.0, "hard", 0.0)
    assert hard.judge == f"m at {server.url}"
    assert server.key == "Bearer secret"
    assert {"role": "user", "content": "one: 2"} in [body["messages"][0] for body in server.seen]
    assert server.seen[0]["response_format"]["json_schema"]["schema"]["properties"]["label"]["enum"] == [
        "easy", "medium", "hard",
    ]  # fmt: skip


async def test_a_server_without_structured_output_is_asked_without(server: Server) -> None:
    refused = (400, json.dumps({"error": {"message": "Unknown field: response_format"}}))
    server.scripts = {"one": [refused, "hard"], "two": ["easy"], "three": [(400, '{"error": {"message": "too long"}}')]}
    endpoint = Endpoint(server.url, "m", retries=0, concurrency=1, max_tokens=77)
    client = EndpointClient(endpoint, no_pause)
    judge = EndpointJudge(client, "{prompt}: {response}")
    one, two, three = [
        await judge.judge([{"role": "user", "content": word}, CONVERSATION[1]]) for word in ("one", "two", "three")
    ]
    await client.close()
    assert (one.label, two.label) == ("hard", "easy")
    assert "too long" in three.reason
    assert ["response_format" in body for body in server.seen] == [True, False, False, False]
    assert {body["max_completion_tokens"] for body in server.seen} == {77}


async def test_several_answers_vote(server: Server) -> None:
    server.scripts = {"one": ["hard", "hard", "medium", "easy"]}
    (verdict,) = await judged(server, "one", samples=4)
    assert verdict.score == pytest.approx(0.625)
    assert verdict.criteria == {"easy": 0.25, "medium": 0.25, "hard": 0.5}


async def test_a_vote_needs_more_than_half_of_its_answers(server: Server) -> None:
    server.scripts = {"three": ["hard", (500, "{}"), "hard", "easy"], "two": ["hard", (500, "{}"), (500, "{}"), "easy"]}
    (three,) = await judged(server, "three", samples=4, retries=0)
    assert (three.score, three.missing) == (pytest.approx(2 / 3), 1)
    (two,) = await judged(server, "two", samples=4, retries=0)
    assert isinstance(two, Failure)
    assert two.reason.startswith("2 of 4 answers failed: InternalServerError")


async def test_a_grade_needs_more_than_half_of_its_answers(server: Server) -> None:
    server.scripts = {"1+1": [(200, completion("10")), (500, "{}"), (200, completion("4"))]}
    found = []
    for samples in (3, 2):
        server.asked.clear()
        client = EndpointClient(Endpoint(server.url, "m", retries=0, samples=samples), no_pause)
        found.append(await EndpointGrader(client, "{prompt} {response}").grade(CONVERSATION))
        await client.close()
    assert found[0] == pytest.approx(0.7)
    assert isinstance(found[1], Failure)


@pytest.mark.parametrize(
    "fault",
    [
        (429, "{}"), (500, "oh"), (503, "{}"), "hang up", "nonsense", '{"label": "ea', '{"label": "terrible"}', "[1]",
        '{"label": 3}', (200, '{"choices": []}'), (200, '{"id"'), (200, "null"), (200, "[]"),
    ],
)  # fmt: skip
async def test_a_fault_is_tried_again_and_then_a_failure_never_a_score(server: Server, fault: Any) -> None:
    server.scripts = {"passing": [fault, "hard"], "lasting": [fault], "sound": ["medium"]}
    passing, lasting, sound = await judged(server, "passing", "lasting", "sound")
    assert isinstance(passing, Verdict)
    assert passing.label == "hard"
    assert isinstance(lasting, Failure)
    assert lasting.reason
    assert server.asked["lasting"] == 2
    assert sound.score == 0.5


async def test_a_time_out_is_a_failure(server: Server) -> None:
    server.scripts = {"slow": ["hang"]}
    (failure,) = await judged(server, "slow", retries=0, limit=0.2)
    assert failure == Failure("APITimeoutError: Request timed out.")


async def test_nobody_there_is_a_failure() -> None:
    client = EndpointClient(Endpoint("http://127.0.0.1:9/v1", "m", retries=0), no_pause)
    assert isinstance(await EndpointJudge(client, "{prompt}{response}").judge(CONVERSATION), Failure)
    await client.close()
    with pytest.raises(ConfigError, match=r"endpoint.base_url=localhost:8000: expected http://"):
        check_address("localhost:8000")


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ('{"grade": 7}', 0.7), ("10", 1.0), ('I say {"grade": 0}.', 0.0),
        ('{"grade": 11}', None), ('{"grade": true}', None), ('{"grade": 7.5}', None), ("good", None),
    ],
)  # fmt: skip
async def test_a_grade(server: Server, reply: str, grade: float | None) -> None:
    server.scripts = {"1+1": [(200, completion(reply))]}
    client = EndpointClient(Endpoint(server.url, "m", retries=1), no_pause)
    found = await EndpointGrader(client, "{prompt} {response}").grade(CONVERSATION)
    await client.close()
    assert isinstance(found, Failure) if grade is None else found == grade


def test_the_cache_keeps_verdicts_and_tells_questions_apart(tmp_path: Any) -> None:
    verdict = Verdict(0.09, "easy", "", "j", {"easy": 0.9, "medium": 0.1, "hard": 0.0})
    key, other = key_of("j", "t", CONVERSATION), key_of("j", "t2", CONVERSATION)
    with VerdictCache(tmp_path / "deep" / "cache.sqlite") as cache:
        cache.put({key: verdict})
    with VerdictCache(tmp_path / "deep" / "cache.sqlite") as cache:
        assert cache.get([key, other]) == {key: verdict}
    assert len({key, other, key_of("k", "t", CONVERSATION), key_of("j", "t", CONVERSATION[:1])}) == 4
    (tmp_path / "none").write_text("nothing of the kind" * 100)
    with pytest.raises(DataError, match="none: no cache of verdicts"):
        VerdictCache(tmp_path / "none")
