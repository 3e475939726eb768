"""Groups that their first rollouts may end, with real engines: the same rollouts as without, and each draw once. And
groups that go on where they stood at a checkpoint.
"""

import asyncio
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from pyarrow.parquet import read_table
from transformers import AutoModelForCausalLM

from curricula.gate import rejection
from posttrain import data
from posttrain.audit import audit
from posttrain.cluster import Cluster, run
from posttrain.config import Config, load_config, resolve_model
from posttrain.ledger import Ledger
from posttrain.resume import begun_groups
from posttrain.rl_stage import train_rl
from posttrain.rl_state import UNDER_WAY
from posttrain.rundir import RunDir
from posttrain.slots import Draw
from posttrain.workers import RayWorkers
from rollouts.generator import Request
from rollouts.recorder import write_shard
from rollouts.renderer import Renderer
from rollouts.types import RolloutGroup
from tests.integration.commands import SMALL
from tests.integration.reference import apart
from tests.judges.server import Server, completion, serving

BASE = resolve_model("tiny:base")
WORDS = [
    "generators.count=1", "rl.generators=1", "generators.kv_cache_gib=0.125", "rl.quotas={math: 1}",
    "rl.max_staleness=0", "rl.group_size=8", "rl.max_concurrent_rollouts=8",
]  # fmt: skip


class Watched(RayWorkers):
    """The real ones, which note each request and whose engine dies before one that is named by its seed."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.requests: list[Request] = []
        self.dies_before: int | None = None

    async def _generate(self, request: Request, *more: Any, **named: Any) -> Any:
        self.requests.append(request)
        if request.seed is not None and request.seed == self.dies_before:
            ray.kill(self._pool.actors[0])
        return await super()._generate(request, *more, **named)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with Cluster(load_config("tiny", WORDS)) as cluster:
        folder = tmp_path_factory.mktemp("rl")
        found = Watched(cluster, cluster.pool(BASE), Renderer(BASE), BASE, BASE, folder)
        run(found.ready())
        yield found


@dataclass(frozen=True)
class Made:
    """The groups of some draws, what they cost, and what was asked for and recorded meanwhile."""

    groups: list[RolloutGroup]
    tokens: float
    requests: list[Request]
    recorded: dict[int, list[int]]


def make(workers: Watched, config: Config, path: Path, count: int) -> Made:
    """Makes the groups of the same draws under a configuration."""
    workers.config, workers.requests = config, []
    run(workers.begin(0, None))
    rows = data.prompts(config, "prompts", Renderer(BASE), config.rl.sampling.max_tokens, print)
    draws = [Draw(index, index, prompt, 0) for index, prompt in enumerate(rows[:count])]

    async def made() -> list[RolloutGroup]:
        judged = await asyncio.gather(*(workers.rollout(draw) for draw in draws))
        groups: list[RolloutGroup] = await asyncio.gather(*(each.payload for each in judged))
        assert [each.outcomes for each in judged] == [
            tuple(rollout.outcome for rollout in group.rollouts) for group in groups
        ]
        return groups

    before = run(workers.engine_metrics())["tokens"]
    groups = run(made())
    tokens = run(workers.engine_metrics())["tokens"] - before
    ray.get(workers.verifier.write_shard.remote(str(path), ()))
    recorded: dict[int, list[int]] = {}
    for row in read_table(path).to_pylist():
        recorded.setdefault(row["draw_id"], []).append(row["rollout"])
    return Made(groups, tokens, workers.requests, recorded)


def kept(group: RolloutGroup, count: int) -> list[Any]:
    return [(each.token_ids, each.turns, each.reward, each.outcome) for each in group.rollouts[:count]]


def sampled(groups: list[RolloutGroup]) -> int:
    return sum(sum(rollout.loss_mask) for group in groups for rollout in group.rollouts)


@pytest.mark.parametrize("preset", ["tiny", "tiny-calculator"])
def test_rollouts_are_those_of_a_run_without(workers: Watched, tmp_path: Path, preset: str) -> None:
    whole = make(workers, load_config(preset, WORDS), tmp_path / "whole.parquet", 24)
    early = make(workers, load_config(preset, [*WORDS, "rl.early_stop=4"]), tmp_path / "early.parquet", 24)
    sizes = [4 if rejection([rollout.outcome for rollout in group.rollouts[:4]]) else 8 for group in whole.groups]
    assert min(Counter(sizes)[4], Counter(sizes)[8]) >= 4
    for group, other, size in zip(whole.groups, early.groups, sizes, strict=True):
        assert kept(other, 8) == kept(group, size)
    assert (whole.tokens, early.tokens) == (sampled(whole.groups), sampled(early.groups))
    assert early.tokens < 0.9 * whole.tokens
    assert early.recorded == {draw_id: list(range(size)) for draw_id, size in enumerate(sizes)}
    if preset == "tiny-calculator":
        late = [rollout for group in early.groups for rollout in group.rollouts[4:]]
        assert any(len(rollout.turns) > 1 for rollout in late)


def test_a_draw_keeps_its_turn_over_both_requests(workers: Watched, tmp_path: Path) -> None:
    made = make(workers, load_config("tiny", [*WORDS, "rl.early_stop=3"]), tmp_path / "x.parquet", 12)
    expected = []
    for draw_id, group in enumerate(made.groups):
        seed = workers._seed(draw_id)
        expected += [(3, seed), (5, seed + 3)] if len(group.rollouts) == 8 else [(3, seed)]
    assert {len(group.rollouts) for group in made.groups} == {3, 8}
    assert [(request.n, request.seed) for request in made.requests] == expected


def test_an_engine_that_dies_between_the_requests_of_a_draw(workers: Watched, tmp_path: Path) -> None:
    config = load_config("tiny", [*WORDS, "rl.early_stop=4"])
    before = make(workers, config, tmp_path / "before.parquet", 8)
    draw_id = next(group.draw_id for group in before.groups if len(group.rollouts) == 8)
    workers.dies_before = workers._seed(draw_id) + 4
    actor = workers._pool.actors[0]
    after = make(workers, config, tmp_path / "after.parquet", 8)
    assert workers._pool.actors[0] is not actor
    assert [kept(group, 8) for group in after.groups] == [kept(group, 8) for group in before.groups]
    assert after.recorded == before.recorded


@pytest.mark.parametrize("early_stop", ["null", "4"])
def test_what_was_under_way_goes_on_where_it_stood(
    workers: Watched, tmp_path: Path, early_stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["rl.max_staleness=4", "rl.max_concurrent_rollouts=256", f"rl.early_stop={early_stop}"]
    config = workers.config = load_config("tiny", [*WORDS, *words])
    run(workers.begin(0, None))
    rows = data.prompts(config, "prompts", Renderer(BASE), config.rl.sampling.max_tokens, print)
    draws = [Draw(index, index, prompt, 0) for index, prompt in enumerate(rows[:24])]

    async def killed() -> None:
        making = [asyncio.ensure_future(workers.rollout(draw)) for draw in draws]
        whole: set[bool] = set()
        await asyncio.sleep(0)
        while whole != {True, False}:
            assert workers._under_way
            groups = await workers.under_way([draw.draw_id for draw in draws])
            whole = {bool(rollout.finish_reason) for group in groups for rollout in group.rollouts if rollout.token_ids}
        write_shard(tmp_path / UNDER_WAY, groups)
        for task in making:
            task.cancel()
        await asyncio.gather(*making, return_exceptions=True)

    run(killed())
    begun = begun_groups(tmp_path, draws, config.rl.group_size)
    assert len(begun) > 4
    run(workers.begin(3, None))  # the same weights
    workers.go_on(begun)
    render = workers._renderer.prompt_tokens
    another_day = render([{"role": "user", "content": "It is Tuesday."}])
    monkeypatch.setattr(workers._renderer, "prompt_tokens", lambda messages: (*another_day, *render(messages)))

    async def made() -> list[RolloutGroup]:
        judged = await asyncio.gather(*(workers.rollout(draw) for draw in draws))
        return await asyncio.gather(*(each.payload for each in judged))

    groups = run(made())
    for group in groups:
        rendered = render(group.prompt.messages)
        assert tuple(group.prompt_token_ids) == (rendered if group.draw_id in begun else (*another_day, *rendered))
    continued = 0
    for draw_id, before in begun.items():
        for part, rollout in zip(before.rollouts, groups[draw_id].rollouts, strict=False):
            length = len(part.token_ids)
            assert rollout.token_ids[:length] == part.token_ids
            assert rollout.logprobs[:length] == part.logprobs
            ends = [span[1] for span in rollout.policy_versions]
            assert [span[0] for span in rollout.policy_versions] == [0, *ends[:-1]]
            assert len(rollout.token_ids) == len(rollout.logprobs) == len(rollout.loss_mask) == ends[-1]
            if part.finish_reason:
                assert (rollout.text, rollout.finish_reason) == (part.text, part.finish_reason)
                assert {version for _, _, version in rollout.policy_versions} == {0}
            elif length:
                continued += 1
                assert [version for _, _, version in rollout.policy_versions] == [0, 3]
                assert rollout.policy_versions[0][1] == length
    assert continued > 4
    write_shard(tmp_path / "made.parquet", groups)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    made_rows = read_table(tmp_path / "made.parquet").to_pylist()
    assert max(apart(model, made_rows, version, config.rl.sampling.temperature) for version in (0, 3)) < 1e-4
    assert not workers._under_way
    assert not workers._begun


def test_no_checkpoint_waits_for_a_conversation_to_end(workers: Watched) -> None:
    """Engines cannot tell how far it is, so that it is not taken for one that has just ended."""
    config = workers.config = load_config("tiny-calculator", [*WORDS, "rl.max_staleness=4"])
    workers.requests = []
    run(workers.begin(0, None))
    (prompt, *_) = data.prompts(config, "prompts", Renderer(BASE), config.rl.sampling.max_tokens, print)

    async def asked() -> RolloutGroup:
        making = asyncio.ensure_future(workers.rollout(Draw(0, 0, prompt, 0)))
        for _ in range(1000):
            await asyncio.sleep(0)
            if workers.requests:
                break
        assert workers.requests
        await asyncio.sleep(0)  # now the engine has been given it
        (group,) = await workers.under_way([0])
        await making
        return group

    assert run(asked()).rollouts == []


def grades(server: Server) -> None:
    """Scripts a model that likes an odd number of letters, fails on one answer in twenty, and likes no answer to one
    question in five.
    """

    def grade(text: str) -> tuple[int, str]:
        question, _, answer = text.partition("### Answer\n")
        answer = "\n".join(answer.partition("\n\nReply")[0].split("\n")[1:-1])
        failing = zlib.crc32(answer.encode()) % 20 == 0
        liked = zlib.crc32(question.encode()) % 5 and len(answer) % 2
        return (500, "{}") if failing else (200, completion(json.dumps({"grade": 9 if liked else 3})))

    server.scripts = {"### Answer\n": grade}


def test_a_graded_run_that_is_resumed_accounts_for_every_draw(
    workers: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a model behind an endpoint, whose failures are rejected and counted, and are no score."""
    with serving() as server:
        grades(server)
        words = [
            *SMALL, "rl.group_size=8", "rl.early_stop=4", "rl.max_staleness=2", "rl.quotas={math: 1}",
            "rl.checkpoint_every=1", "rubric.criteria.correct={reward: auto}", "rubric.outcome=style",
            "rubric.length_penalty=0",
            "rubric.criteria.style={judge: 'It is odd.'}",
            f"rubric.endpoint={{base_url: '{server.url}', model: m, retries: 0}}",
        ]  # fmt: skip
        for steps, resume in ((3, None), (6, "auto")):
            config = load_config("tiny", [*words, f"rl.steps={steps}"])
            monkeypatch.setattr(workers._cluster, "config", config)
            train_rl(config, RunDir(tmp_path / "r", config), resume)
            assert audit(tmp_path / "r").problems == ()
    rows = Ledger(tmp_path / "r/ledger.db", read_only=True).rows("voided_by IS NULL")
    assert Counter(row.step for row in rows if row.step) == dict.fromkeys(range(1, 7), 6)
    assert {row.rollouts for row in rows if row.state == "trained"} == {8}
    rejected = {(row.reason, row.rollouts) for row in rows if row.state == "rejected"}
    assert {("none_solved", 4), ("judge", 0)} <= rejected <= {("all_solved", 4), ("none_solved", 4), ("judge", 0)}
    shards = [row for shard in (tmp_path / "r/rl/rollouts").iterdir() for row in read_table(shard).to_pylist()]
    assert shards
    for row in shards:
        breakdown = json.loads(row["breakdown"])
        assert breakdown["style"] in (0.3, 0.9)
        assert row["reward"] == (breakdown["correct"] + breakdown["style"]) / 2
