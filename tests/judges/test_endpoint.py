"""A judge behind an endpoint that fails in every way that endpoints fail; a real server, real requests."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from judges.endpoint import Endpoint, EndpointJudge, Failure
from judges.llm import Verdict
from judges.verdict_cache import VerdictCache, key_of
from rollouts.errors import ConfigError, DataError

CONVERSATION = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}]


class Server(ThreadingHTTPServer):
    """Answers by a script: for each request whose prompt holds a word, the next of that word's replies."""

    def __init__(self) -> None:
        self.scripts: dict[str, list[Any]] = {}
        self.asked: Counter[str] = Counter()
        self.seen: list[dict[str, Any]] = []
        self.key = ""
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.key = self.headers["Authorization"]
        text = body["messages"][0]["content"]
        word = next(word for word in self.server.scripts if word in text)
        with self.server.lock:
            self.server.seen.append(body)
            script = self.server.scripts[word]
            reply = script[min(self.server.asked[word], len(script) - 1)]
            self.server.asked[word] += 1
        if reply == "hang":
            threading.Event().wait(1.0)
            reply = "easy"
        if reply == "hang up":
            self.connection.close()
            return
        status, data = reply if isinstance(reply, tuple) else (200, None)
        if data is None:
            content = reply if not reply.isalpha() or reply == "nonsense" else json.dumps({"label": reply})
            message = {"role": "assistant", "content": content}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            data = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield running
        running.shutdown()


async def no_pause(_: float) -> None:
    pass


async def judged(server: Server, *words: str, retries: int = 1, samples: int = 1, limit: float = 5.0) -> list[Any]:
    endpoint = Endpoint(server.url, "m", "JUDGE_KEY", retries=retries, timeout=limit, samples=samples)
    judge = EndpointJudge(endpoint, "{prompt}: {response}", no_pause)
    conversations = [[{"role": "user", "content": word}, CONVERSATION[1]] for word in words]
    try:
        return await judge.judge(conversations)
    finally:
        await judge.close()


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


async def test_several_answers_vote(server: Server) -> None:
    server.scripts = {"one": ["hard", "hard", "medium", "easy"]}
    (verdict,) = await judged(server, "one", samples=4)
    assert verdict.score == pytest.approx(0.625)
    assert verdict.criteria == {"easy": 0.25, "medium": 0.25, "hard": 0.5}


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


async def test_nobody_there_is_a_failure(server: Server) -> None:
    judge = EndpointJudge(Endpoint("http://127.0.0.1:9/v1", "m", retries=0), "{prompt}{response}", no_pause)
    (failure,) = await judge.judge([CONVERSATION])
    assert isinstance(failure, Failure)
    with pytest.raises(ConfigError, match=r"judge.endpoint.base_url=localhost:8000: expected http://"):
        EndpointJudge(Endpoint("localhost:8000", "m"), "")


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
