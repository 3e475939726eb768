"""A preference counts only if it is the same in both orders, and length is no merit."""

from collections.abc import Sequence

import pytest

from judges.endpoint import Endpoint, EndpointClient
from judges.llm import Failure
from judges.preference import PreferenceJudge
from tests.judges.server import completion, serving

QUESTION = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1"}]


def reads(text: str) -> tuple[str, str]:
    """The answers in a question, as they come."""
    first, second = (text.partition(f"### Answer {name}\n")[2].split("\n") for name in "AB")
    assert first[0] == first[2] == second[0] == second[2]
    return first[1], second[1]


@pytest.mark.parametrize(
    ("prefers", "answers", "expected"),
    [
        (lambda a, b: "A" if a == "good" else "B", ("good", "poor"), "first"),
        (lambda a, b: "A" if a == "good" else "B", ("poor", "good"), "second"),
        (lambda a, b: "A", ("good", "poor"), "tie"),  # whatever comes first
        (lambda a, b: "B", ("good", "poor"), "tie"),
        (lambda a, b: "tie", ("good", "poor"), "tie"),
        (lambda a, b: "A" if len(a) > len(b) else "B", ("long" * 9, "short"), "tie"),  # the longer one, much longer
        (lambda a, b: "A" if len(a) < len(b) else "B", ("long" * 9, "short"), "second"),
        (lambda a, b: "A" if a == "good" else "tie", ("good", "poor"), "tie"),
    ],
)
async def test_both_orders(prefers, answers: tuple[str, str], expected: str) -> None:  # type: ignore[no-untyped-def]
    with serving() as server:
        server.scripts = {"1+1": lambda text: (200, completion(f'{{"better": "{prefers(*reads(text))}"}}'))}
        client = EndpointClient(Endpoint(server.url, "m"))
        assert await PreferenceJudge(client).compare(QUESTION, *answers) == expected
        await client.close()


@pytest.mark.parametrize(
    ("votes", "expected"),
    [("AAB", "first"), ("ABB", "second"), (["A", "B", "tie"], "tie"), (["A", "tie", "tie"], "tie")],
)
async def test_samples_vote(votes: Sequence[str], expected: str) -> None:
    with serving() as server:
        turned = {"A": "B", "B": "A", "tie": "tie"}
        in_order, in_turn = iter(votes), iter(votes)

        def says(text: str) -> tuple[int, str]:
            better = next(in_order) if reads(text) == ("this", "that") else turned[next(in_turn)]
            return 200, completion(f'{{"better": "{better}"}}')

        server.scripts = {"1+1": says}
        client = EndpointClient(Endpoint(server.url, "m", samples=3))
        assert await PreferenceJudge(client).compare(QUESTION, "this", "that") == expected
        await client.close()
    assert len(server.seen) == 6


async def test_a_template_of_the_users_own() -> None:
    with serving() as server:
        server.scripts = {"1+1": lambda text: (200, completion("A" if "1+1: good" in text else "B"))}
        client = EndpointClient(Endpoint(server.url, "m"))
        assert await PreferenceJudge(client, "{prompt}: {first} {second}").compare(QUESTION, "good", "poor") == "first"
        await client.close()
    assert [body["messages"][0]["content"] for body in server.seen[:1]] in (["1+1: good poor"], ["1+1: poor good"])


async def test_a_failure_is_no_tie() -> None:
    with serving() as server:
        server.scripts = {"1+1": [(500, "{}")]}
        client = EndpointClient(Endpoint(server.url, "m", retries=0))
        assert isinstance(await PreferenceJudge(client).compare(QUESTION, "a", "b"), Failure)
        await client.close()
