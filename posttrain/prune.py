"""`posttrain prune`: a judge labels every demonstration, and the easy ones are dropped.

Light SFT begins here: what the model can do already teaches nothing and only ties it down.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curricula.datasets import Demonstration
from judges import report
from judges.duplicates import near_duplicates
from judges.endpoint import Endpoint, EndpointClient, EndpointJudge, check_address
from judges.llm import LABELS, PLACES, TEMPLATE, Failure, LLMJudge, Verdict
from judges.pruner import Candidate, Decision, decide
from judges.verdict_cache import VerdictCache, identity, key_of
from posttrain import data
from posttrain.cluster import LABEL_TOKENS, Cluster, answer, engine_settings, patiently, readable, run
from posttrain.config import Config, resolve_model
from posttrain.passk import read_questions
from posttrain.placement import ROLES
from posttrain.progress import bar, say
from posttrain.rundir import RunDir, check_model, write_json
from posttrain.templates import read_template
from rollouts.errors import UserError
from rollouts.generator import Request
from rollouts.recorder import write_rows
from rollouts.renderer import Renderer
from rollouts.types import Message, Rollout, question_id

CHUNK = 256

Judged = dict[int, Verdict | Failure]
"""Row → what a judge said of it."""
Record = Callable[[Judged], None]
"""Keeps what was said, for good."""


@dataclass(frozen=True)
class Pruned:
    """How many demonstrations came in and were kept."""

    rows_in: int
    rows_kept: int

    @property
    def dropped_share(self) -> float:
        """Share of the rows that was dropped."""
        return 1 - self.rows_kept / self.rows_in


def prune(config: Config, rundir: RunDir) -> Pruned:
    """Runs the stage; writes verdicts.parquet, kept.parquet, dropped.parquet and the report into the `sft` folder.

    Raises:
        UserError: wrong data, template or judge model; or too many demonstrations could not be judged.
    """
    rows = data.demonstrations(config)
    own = config.judge.template
    template = TEMPLATE if own is None else read_template("judge.template", own, PLACES)
    models = [*([] if config.judge.endpoint else [config.judge.model]), *config.judge.panel]
    for model in models:
        check_model(resolve_model(model))
    known = read_questions(config.prune.pass_rates) if config.prune.pass_rates else {}
    rundir.save_config()
    repeats = _repeats(rows, config.prune.near_duplicates)
    shown = [index for index in range(len(rows)) if index not in repeats]
    cache = Path(config.judge.cache).expanduser() if config.judge.cache else rundir.stage("sft") / "verdicts.sqlite"
    by_judge: dict[str, Judged] = {}
    with VerdictCache(cache) as verdicts:
        if config.judge.endpoint:
            endpoint = Endpoint(**config.judge.endpoint.model_dump())
            check_address(endpoint.base_url)
            who = json.dumps(["endpoint", endpoint.base_url, endpoint.model, endpoint.samples])
            name = f"{endpoint.model} at {endpoint.base_url}"  # which the panel may have on engines too
            by_judge[name] = _ask(rows, shown, who, template, verdicts, _remote(endpoint, template))
        if models:
            with Cluster.of(config, ROLES["prune"]) as cluster:
                for model in models:
                    ask = _local(config, cluster, model, template)
                    path = resolve_model(model)
                    who = json.dumps([identity(path), readable(path, config.judge.max_prompt_tokens)])
                    by_judge[model] = _ask(rows, shown, who, template, verdicts, ask)
    candidates = [_candidate(rows, index, by_judge, repeats) for index in range(len(rows))]
    _check_failed(candidates, by_judge, repeats, config.judge.max_failed)
    settings = config.prune
    decisions = decide(candidates, settings.keep_ratio, settings.threshold, settings.method, config.seed)
    found = _write(rundir.stage("sft"), rows, candidates, decisions, by_judge, known)
    labels = Counter(candidate.verdict.label for candidate in candidates if candidate.verdict)
    result = Pruned(len(rows), sum(decision.kept for decision in decisions))
    by_label = ", ".join(f"{label} {labels[label]}" for label in LABELS)
    others = f", near-duplicates {len(repeats)}" if repeats else ""
    failed = len(shown) - sum(labels.values())
    others += f", not judged {failed}" if failed else ""
    say(f"prune: {by_label}{others}; kept {result.rows_kept} of {result.rows_in} ({result.dropped_share:.0%} dropped)")
    for line in report.warnings(found):
        say(f"prune: {line}")
    say(f"{rundir.stage('sft') / 'prune.md'} shows what lies on both sides of the cut")
    return result


def _repeats(rows: Sequence[Demonstration], similarity: float | None) -> dict[int, int]:
    """Row → the earlier row that it nearly repeats, question and answer together."""
    if similarity is None:
        return {}
    texts = ["\n".join(message["content"] for message in row.messages if message["role"] != "system") for row in rows]
    return near_duplicates(texts, similarity)


# ------------------------------------------------------------------------------------------------------------ judging


Ask = Callable[[dict[int, Sequence[Message]], Record], None]
"""Judges conversations, giving verdicts to the record as they come."""


def _ask(
    rows: Sequence[Demonstration], shown: Sequence[int], who: str, template: str, cache: VerdictCache, ask: Ask
) -> Judged:
    """What a judge says of the rows that it is shown: from the cache, or by asking it now."""
    keys = {index: key_of(who, template, rows[index].messages) for index in shown}
    before = cache.get(list(keys.values()))
    judged: Judged = {index: before[key] for index, key in keys.items() if key in before}
    todo: dict[int, Sequence[Message]] = {i: rows[i].messages for i in shown if i not in judged}
    if judged:
        say(f"prune: {len(judged)} verdicts are known already")

    def record(said: Judged) -> None:
        judged.update(said)
        whole = {index: each for index, each in said.items() if isinstance(each, Verdict) and not each.missing}
        cache.put({keys[index]: verdict for index, verdict in whole.items()})

    if todo:
        ask(todo, record)
    return judged


def _remote(endpoint: Endpoint, template: str) -> Ask:
    """A model behind an endpoint."""

    async def ask_all(todo: dict[int, Sequence[Message]], record: Record) -> None:
        client = EndpointClient(endpoint)
        judge = EndpointJudge(client, template)
        with bar("prune", len(todo), "row") as progress:

            async def one(index: int, messages: Sequence[Message]) -> None:
                record({index: await judge.judge(messages)})
                progress.advance()

            await asyncio.gather(*(one(index, messages) for index, messages in todo.items()))
        await client.close()

    return lambda todo, record: asyncio.run(ask_all(todo, record))


def _local(config: Config, cluster: Cluster, model: str, template: str) -> Ask:
    """A model on engines that end with the stage: the pool and the trainer need their memory and GPUs."""

    def ask(todo: dict[int, Sequence[Message]], record: Record) -> None:
        run(_judge(config, cluster, model, template, todo, record))

    return ask


async def _judge(
    config: Config,
    cluster: Cluster,
    model: str,
    template: str,
    todo: dict[int, Sequence[Message]],
    record: Record,
) -> None:
    width, path = config.judge.tensor_parallel or config.generators.tensor_parallel, resolve_model(model)
    longest = readable(path, config.judge.max_prompt_tokens)
    settings = engine_settings(
        config, logprobs_mode="raw_logprobs", tensor_parallel_size=width, max_model_len=longest + LABEL_TOKENS,
        lora_rank=0,
    )  # fmt: skip
    engines = [cluster.generator(path, settings, seat) for seat in cluster.placement.judge]
    limits = config.generators
    await asyncio.gather(
        *(answer(engine.ready.remote(), limits.start_timeout, "the judge to start") for engine in engines)
    )
    renderer, indices = Renderer(path), list(todo)
    chunks = iter([indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)])
    with bar("prune", len(todo), "row") as progress:

        async def work(engine: Any) -> None:
            async def generate(requests: Sequence[Request]) -> list[list[Rollout]]:
                limit = limits.request_timeout
                asked = engine.generate_all.remote(requests)
                result: list[list[Rollout]] = await patiently(asked, engine, limit, "the judge", conversing=False)
                return result

            judge = LLMJudge(model, renderer, generate, template, longest)
            for chunk in chunks:
                verdicts = await judge.judge([todo[index] for index in chunk])
                record(dict(zip(chunk, verdicts, strict=True)))
                progress.advance(len(chunk))

        await asyncio.gather(*(work(engine) for engine in engines))
    for engine in engines:
        cluster.end(engine)


def _candidate(
    rows: Sequence[Demonstration], index: int, by_judge: dict[str, Judged], repeats: dict[int, int]
) -> Candidate:
    """A row with the mean of its verdicts; none without that of each judge, since judges have scales of their own."""
    row = rows[index]
    length = len(row.messages[-1]["content"])
    if index in repeats:
        return Candidate(row.capability, length, None, f"near-duplicate: of {rows[repeats[index]].row_id}")
    said = [judged[index] for judged in by_judge.values()]
    reasons = [each.reason for each in said if isinstance(each, Failure)]
    if reasons:
        return Candidate(row.capability, length, None, f"not judged: {reasons[0]}")
    return Candidate(row.capability, length, mean([each for each in said if isinstance(each, Verdict)]))


def mean(verdicts: Sequence[Verdict]) -> Verdict:
    """Several judges' verdict on one demonstration: means of scores and probabilities, and the likeliest label."""
    if len(verdicts) == 1:
        return verdicts[0]
    criteria = {label: sum(each.criteria[label] for each in verdicts) / len(verdicts) for label in LABELS}
    score = sum(each.score for each in verdicts) / len(verdicts)
    judges = ", ".join(each.judge for each in verdicts)
    return Verdict(score, max(LABELS, key=lambda label: criteria[label]), "", judges, criteria)


def _check_failed(
    candidates: Sequence[Candidate], by_judge: dict[str, Judged], repeats: dict[int, int], most: float
) -> None:
    """Raises UserError where too much was not judged: what is left would be a sample of what the judge can answer."""
    shown = len(candidates) - len(repeats)
    failed = [candidate for candidate in candidates if candidate.problem.startswith("not judged: ")]
    if failed and len(failed) > most * shown:
        reasons = Counter(candidate.problem.removeprefix("not judged: ") for candidate in failed)
        ((reason, count),) = reasons.most_common(1)
        raise UserError(
            f"judge: {len(failed)} of {shown} demonstrations could not be judged by {_by_whom(by_judge)} (allowed: "
            f"judge.max_failed={most:g}); {count} times: {reason}; the verdicts so far are kept, run the command again"
        )


def _by_whom(by_judge: dict[str, Judged]) -> str:
    """The judges that failed; of several, with how many rows each failed on."""
    failed = {name: count for name, count in report.failures(by_judge).items() if count}
    return ", ".join(f"{name} ({count})" if len(by_judge) > 1 else name for name, count in failed.items())


# ------------------------------------------------------------------------------------------------------------ writing


def _write(
    folder: Path,
    rows: Sequence[Demonstration],
    candidates: Sequence[Candidate],
    decisions: Sequence[Decision],
    by_judge: dict[str, Judged],
    known: dict[str, float],
) -> dict[str, Any]:
    """Writes the files; returns the report's numbers."""
    everything = range(len(rows))
    rates = [known.get(question_id(row.messages)) for row in rows]
    found = report.numbers(candidates, decisions, by_judge, rates)
    text = report.page(found, candidates, decisions, [row.messages for row in rows])
    temporary = folder / ".prune.md.tmp"
    temporary.write_text(text)
    temporary.replace(folder / "prune.md")
    write_json(folder / "prune.json", found)

    def row(index: int) -> dict[str, Any]:
        demonstration, candidate, decision = rows[index], candidates[index], decisions[index]
        verdict = candidate.verdict
        return {
            "row_id": demonstration.row_id,
            "messages": json.dumps(list(demonstration.messages), ensure_ascii=False),
            "capability": demonstration.capability,
            "label": verdict.label if verdict else None,
            "score": verdict.score if verdict else None,
            **{f"p_{label}": verdict.criteria[label] if verdict else None for label in LABELS},
            "judge": verdict.judge if verdict else None,
            "pass_rate": rates[index],
            **asdict(decision),
        }

    for name, chosen in {
        "verdicts": everything,
        "dropped": [index for index in everything if not decisions[index].kept],
        "kept": [index for index in everything if decisions[index].kept],  # last: its presence says that it is done
    }.items():
        write_rows(folder / f"{name}.parquet", [row(index) for index in chosen])
    return found
