"""The prompts of a stream that are held at a time: those that may be drawn, and those that are to follow them."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path

from curricula.quotas import allocate
from curricula.stream import PROMPT_JSON, PromptStream
from rollouts.errors import CheckpointError, DataError, first_line
from rollouts.types import Prompt

log = logging.getLogger(__name__)

FILE = "window.jsonl"
PATIENCE = 10_000
"""Rows in a row without the prompt that is looked for, after which it is looked for no further."""
WAITING = 4
"""Where there are several capabilities, one part in so many of the window waits: the stream has them in another order
than they are drawn in, and what is read while a prompt of another capability is looked for should not be lost."""


class PromptWindow:
    """At most so many prompts of a stream, each content once. Each capability has seats of its own, and a prompt that
    leaves makes room for the next one of its capability.

    What is read meanwhile of others waits its turn. Where the stream has more of a capability than is drawn of it, the
    oldest of those waiting are passed over.

    Example: `PromptWindow(stream, 512, {"math": 1, "code": 1}).prompts` are 192 of each; up to 128 more wait.
    """

    def __init__(
        self,
        stream: PromptStream,
        size: int,
        weights: Mapping[str, float] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        """Fills the window.

        Args:
            stream: whose prompts these are.
            size: prompts held at most.
            weights: of the capabilities' shares. None: equal shares of those among the stream's first `size` prompts.
            checkpoint: a directory with what `save` wrote; where that is of another source, the window begins anew.

        Raises:
            DataError: the source is wrong, or has no prompt of a capability.
            CheckpointError: what was saved is damaged.
        """
        self._stream = stream
        self._held: set[str] = set()  # prompt ids
        self._told: set[str] = set()  # warnings
        self._dry: set[str] = set()  # capabilities without a next prompt
        self.prompts: list[Prompt] = []
        """Those that may be drawn; each row keeps its capability."""
        found, waiting = self._restored(checkpoint) if checkpoint else ([], [])
        found = found or stream.first(size, PATIENCE, list(weights or ()))
        names = list(weights or dict.fromkeys(prompt.domain for prompt in found))
        if self._dry.issuperset(names):  # the source may have grown
            self._dry.clear()
        self._room = size // WAITING if len(names) > 1 else 0
        self._queues: dict[str, deque[Prompt]] = {name: deque() for name in names}
        self._full = False
        self._take_seats(allocate(size - self._room, weights or dict.fromkeys(names, 1.0)), found, waiting)
        self._full = True
        for what in sorted(self._told):
            log.warning("%s: %s", stream.name, what)

    def __len__(self) -> int:
        """How many prompts are held."""
        return len(self._held)

    def __str__(self) -> str:
        """`384 prompts (math 192, code 192)`."""
        counts = ((name, sum(prompt.domain == name for prompt in self.prompts)) for name in self._queues)
        return f"{len(self.prompts)} prompts ({', '.join(f'{name} {count}' for name, count in counts)})"

    def replace(self, row: int) -> Prompt | None:
        """Puts the next prompt of its capability into a row; None if there is none: then the old one stays.

        Raises:
            DataError: a row of the source is bad.
        """
        old = self.prompts[row]
        prompt = self._next(old.domain)
        if prompt is not None:
            self._held.remove(old.prompt_id)
            self.prompts[row] = prompt
        return prompt

    def save(self, directory: Path) -> None:
        """Writes `window.jsonl` into a checkpoint that is being made: where the stream is, then a line for each prompt.

        Those that may be drawn come first, in the order of their rows.
        """
        stream = self._stream
        place = {
            "source": stream.name, "passes": stream.passes, "position": stream.position, "rows": len(self.prompts),
            "dry": sorted(self._dry),
        }  # fmt: skip
        waiting = [prompt for queue in self._queues.values() for prompt in queue]
        with (directory / FILE).open("wb") as file:
            file.write(json.dumps(place).encode() + b"\n")
            file.writelines(PROMPT_JSON.dump_json(prompt) + b"\n" for prompt in [*self.prompts, *waiting])

    def _restored(self, checkpoint: Path) -> tuple[list[Prompt], list[Prompt]]:
        """What `save` wrote: the prompts that may be drawn, and those that wait. The stream goes on where it was."""
        path = checkpoint / FILE
        if not path.is_file():
            return [], []
        try:
            first, *lines = path.read_bytes().splitlines()
            place = json.loads(first)
            if place["source"] != self._stream.name:
                return [], []
            prompts = [PROMPT_JSON.validate_json(line) for line in lines]
            self._stream.seek(int(place["passes"]), int(place["position"]))
            self._dry.update(place["dry"])
            return prompts[: place["rows"]], prompts[place["rows"] :]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = first_line(error)
            raise CheckpointError(f"{path}: no window on a stream ({reason}); choose another checkpoint") from None

    def _take_seats(self, seats: Mapping[str, int], found: list[Prompt], waiting: list[Prompt]) -> None:
        """Seats prompts in their order, as many of each capability as it has seats; the others wait."""
        free = dict(seats)
        for prompt in found:
            if free.get(prompt.domain, 0):
                free[prompt.domain] -= 1
                self._held.add(prompt.prompt_id)
                self.prompts.append(prompt)
            else:
                self._wait(prompt)
        for prompt in waiting:
            self._wait(prompt)
        for name in self._queues:
            while free[name] and (further := self._next(name)) is not None:
                free[name] -= 1
                self.prompts.append(further)
            if free[name] == seats[name] > 0:
                rows = f"the first {self._stream.position:,} rows" if not self._stream.passes else "its rows"
                problem = f"no prompt of the capability '{name}' among {rows}; rl.quotas names it"
                raise DataError(f"{self._stream.name}: {problem}: mix the source, or take it out of there")

    def _next(self, capability: str) -> Prompt | None:
        """The next prompt of a capability; what is read of others on the way there waits."""
        queue = self._queues[capability]
        if queue or capability in self._dry:
            return queue.popleft() if queue else None
        passes = self._stream.passes
        for _ in range(PATIENCE):
            prompt = self._stream.read()
            if prompt is None:
                if self._stream.passes == passes + 2:  # so one pass was whole
                    break
            elif self._is_new(prompt):
                if prompt.domain == capability:
                    self._held.add(prompt.prompt_id)
                    return prompt
                self._wait(prompt)
        self._dry.add(capability)
        self._tell(f"no further prompt of the capability '{capability}' is found; those of the window are drawn again")
        return None

    def _is_new(self, prompt: Prompt) -> bool:
        if prompt.domain not in self._queues:
            self._tell(
                f"prompts of the capability '{prompt.domain}' are left out, since rl.quotas does not name it and "
                "the first prompts have none of it"
            )
            return False
        return prompt.prompt_id not in self._held and self._stream.fits(prompt)

    def _wait(self, prompt: Prompt) -> None:
        """Lets a prompt wait. Where too many do, the oldest of the capability that has most of them is passed over."""
        if prompt.domain not in self._queues:  # any more
            return
        self._queues[prompt.domain].append(prompt)
        self._held.add(prompt.prompt_id)
        self._dry.discard(prompt.domain)
        if sum(map(len, self._queues.values())) > self._room:
            longest = max(self._queues.values(), key=len)
            passed_over = longest.popleft()
            self._held.remove(passed_over.prompt_id)
            self._tell(
                f"more prompts of the capability '{passed_over.domain}' than are drawn: some are passed over "
                "(rl.quotas sets the shares)"
            )

    def _tell(self, what: str) -> None:
        """A warning, once; what comes before an error of the first filling is left out."""
        if what not in self._told and self._full:
            log.warning("%s: %s", self._stream.name, what)
        self._told.add(what)
