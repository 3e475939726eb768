"""The judging model, with made-up log-probabilities."""

import math
from collections.abc import Sequence

import pytest

from judges.llm import MET, TEMPLATE, Failure, LLMJudge, Verdict, filled
from rollouts.errors import JudgeError
from rollouts.generator import Request
from rollouts.types import Rollout

LOGPROBS = {"easy": [-0.1, -3.0], "medium": [-1.0, -0.2, -0.3], "hard": [-2.5, -0.5]}


class Letters:
    """A renderer whose tokens are the letters of the last message, but for `@`, which is a special one."""

    def prompt_tokens(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        return tuple(map(ord, messages[-1]["content"]))

    def plain(self, text: str) -> str:
        return text.replace("@", "(at)")


def said(request: Request) -> str:
    return "".join(map(chr, request.prompt_token_ids))


SPELLINGS = {"easy": [1, 2], "medium": [3, 4, 5], "hard": [6, 2]}


class Engine:
    """Says what it is forced to; log-probabilities favour `easy` by its first token alone."""

    def __init__(self, says: str | None = None) -> None:
        self.requests: list[Request] = []
        self.says = says

    async def __call__(self, requests: Sequence[Request]) -> list[list[Rollout]]:
        self.requests += requests
        return [[self._rollout(request)] for request in requests]

    def _rollout(self, request: Request) -> Rollout:
        if request.choices:
            (label,) = request.choices
            tokens = SPELLINGS[label]
            return Rollout(tokens, [True] * len(tokens), [0.0] * len(tokens), [], "stop", self.says or label)
        tokens = list(request.prompt_token_ids[-request.scored :])
        (label,) = (name for name, spelling in SPELLINGS.items() if spelling == tokens)
        return Rollout(tokens, [True] * len(tokens), LOGPROBS[label], [], "stop", "")


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]


def judge(engine: Engine, template: str = "{prompt}|{response}", limit: int = 1000) -> LLMJudge:
    return LLMJudge("j", Letters(), engine, template, limit)


async def test_a_label_has_the_probability_of_its_whole_sequence() -> None:
    (verdict,) = await judge(Engine()).judge([conversation("2+2", "4")])
    weights = [math.exp(-3.1), math.exp(-1.5), math.exp(-3.0)]
    easy, medium, hard = (weight / sum(weights) for weight in weights)
    assert verdict.criteria == pytest.approx({"easy": easy, "medium": medium, "hard": hard})
    assert verdict.label == "medium"  # though `easy` has the likeliest first token
    assert verdict.score == pytest.approx(medium / 2 + hard)
    assert verdict.judge == "j"


async def test_other_labels_have_values_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPELLINGS, "no", [7])
    monkeypatch.setitem(SPELLINGS, "yes", [8, 2])
    monkeypatch.setitem(LOGPROBS, "no", [math.log(0.1)])
    monkeypatch.setitem(LOGPROBS, "yes", [math.log(0.6), math.log(0.5)])
    judge = LLMJudge("j", Letters(), Engine(), "{prompt}|{response}", 1000, MET)
    (verdict,) = await judge.judge([conversation("2+2", "4")])
    assert (verdict.label, verdict.score) == ("yes", pytest.approx(0.75))


async def test_labels_are_spelt_once() -> None:
    engine = Engine()
    asked = judge(engine)
    first = await asked.judge([conversation("2+2", "4")])
    assert await asked.judge([conversation("2+2", "4")]) == first
    assert [len(request.choices) for request in engine.requests] == [1] * 3 + [0] * 6


async def test_each_demonstration_is_scored_once_with_each_label_in_order() -> None:
    engine = Engine()
    verdicts = await judge(engine).judge([conversation("2+2", "4"), conversation("{response}", "ü")])
    assert len(verdicts) == 2
    forced, scored = engine.requests[:3], engine.requests[3:]
    assert [(said(request), request.choices) for request in forced] == [("2+2|4", (label,)) for label in LOGPROBS]
    assert {request.sampling.temperature for request in forced} == {0.0}
    assert [request.prompt_token_ids for request in scored] == [
        (*map(ord, text), *spelling) for text in ("2+2|4", "{response}|ü") for spelling in SPELLINGS.values()
    ]
    assert [request.scored for request in scored] == [2, 3, 2] * 2


async def test_nothing_to_judge() -> None:
    assert await judge(Engine()).judge([]) == []


async def test_an_engine_that_says_something_else_is_an_error_and_no_verdict() -> None:
    with pytest.raises(JudgeError, match="judge j: forced to say 'easy', said 'hm'"):
        await judge(Engine("hm")).judge([conversation("2+2", "4")])


def test_a_long_answer_is_cut() -> None:
    prompt = judge(Engine(), limit=50).prompt(conversation("2+2", "x" * 1000))
    assert "".join(map(chr, prompt)) == "2+2|" + "x" * 31  # halved until it fits


@pytest.mark.parametrize(
    ("whole", "answer", "reason"),
    [
        (False, "4", "judge j: 16 tokens to read without the answer, max_prompt_tokens is 10"),
        (True, "4", "judge j: 17 tokens to read, max_prompt_tokens is 10"),
        (True, "", "judge j: 16 tokens to read, max_prompt_tokens is 10"),
    ],
)
async def test_a_question_that_is_too_long_is_not_judged_and_others_are(whole: bool, answer: str, reason: str) -> None:
    engine = Engine()
    judge = LLMJudge("j", Letters(), engine, "{prompt}|{response}", 10, whole=whole)
    first, long, last = await judge.judge(
        [conversation("2+2", "4"), conversation("a long question", answer), conversation("2+3", "5")]
    )
    assert long == Failure(reason)
    assert isinstance(first, Verdict)
    assert isinstance(last, Verdict)
    assert {said(request)[:5] for request in engine.requests} == {"2+2|4", "2+3|5"}
    assert await judge.judge([conversation("a long question", answer)]) == [Failure(reason)]


async def test_log_probabilities_that_are_none_make_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGPROBS, "hard", [math.nan, -0.5])
    assert await judge(Engine()).judge([conversation("2+2", "4")]) == [
        Failure("judge j: its labels have log-probabilities of -3.1, -1.5, nan")
    ]
    monkeypatch.setitem(LOGPROBS, "hard", [-math.inf, -0.5])
    (verdict,) = await judge(Engine()).judge([conversation("2+2", "4")])
    assert isinstance(verdict, Verdict)
    assert verdict.criteria["hard"] == 0.0


def test_no_text_brings_special_tokens_along() -> None:
    prompt = judge(Engine(), "@{prompt}|{response}@").prompt(conversation("2@2", "@4"))
    assert "".join(map(chr, prompt)) == "@2(at)2|(at)4@"  # the template's own stay


def test_a_template_needs_both_places() -> None:
    with pytest.raises(ValueError, match=r"lacks \{response\}"):
        judge(Engine(), "{prompt}")
    assert "{prompt}" in TEMPLATE
    assert "{response}" in TEMPLATE


def test_a_task_may_speak_of_the_templates_places() -> None:
    assert (
        filled("{prompt}|{response}", conversation("What is {response}?", "{prompt}!"))
        == "What is {response}?|{prompt}!"
    )


async def test_what_is_to_be_judged_whole_is_not_judged_by_its_beginning() -> None:
    judge = LLMJudge("j", Letters(), Engine(), "{prompt}|{response}", 5, whole=True)
    assert len(await judge.judge([conversation("2+2", "4")])) == 1
    verdict, failure = await judge.judge([conversation("2+2", "4"), conversation("2+2", "44")])
    assert isinstance(verdict, Verdict)
    assert failure == Failure("judge j: 6 tokens to read, max_prompt_tokens is 5")
