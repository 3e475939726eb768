"""A preference counts only if it is the same in both orders, and length is no merit."""

import pytest

from judges.endpoint import Endpoint, EndpointClient, Failure
from judges.preference import PreferenceJudge
from tests.judges.server import completion, serving

QUESTION = [{"role": "system", "content": "s"}, {"role": "user", "content": "1+1"}]


def reads(text: str) -> tuple[str, str]:
    """The answers in a question, as they come."""
    first = text.partition("### Answer A\n")[2].partition("\n")[0]
    return first, text.partition("### Answer B\n")[2].partition("\n")[0]


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


async def test_a_failure_is_no_tie() -> None:
    with serving() as server:
        server.scripts = {"1+1": [(500, "{}")]}
        client = EndpointClient(Endpoint(server.url, "m", retries=0))
        assert isinstance(await PreferenceJudge(client).compare(QUESTION, "a", "b"), Failure)
        await client.close()
