"""Which prompt comes next: statistics, selection, what is in flight, and all of it in a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curricula.curriculum import Curriculum
from curricula.pools import Pools
from curricula.row_sets import NONE
from curricula.selection import InOrder, Uniform, together
from curricula.signal import Signal
from curricula.stats import StatsTable
from curricula.window import PromptWindow
from rollouts.errors import CheckpointError
from rollouts.types import Prompt

FILE = "sampler.npz"
SELECTIONS: dict[str, type[Uniform]] = {
    "uniform": Uniform, "dynamic_sampling": Uniform, "pools": Pools, "signal": Signal,
}  # fmt: skip
"""The ways of choosing, by their names; what `dynamic_sampling` adds to `uniform` is the gate's."""
IN_ORDER = dict.fromkeys(("uniform", "dynamic_sampling"), InOrder)
"""What takes their place with a window on a stream."""


@dataclass(frozen=True)
class Restored:
    """What became of the prompts of a saved state; an edited prompt is another one, so it counts twice."""

    kept: int
    removed: int
    new: int

    def __str__(self) -> str:
        return f"{self.kept} go on, {self.removed} are gone, {self.new} are new and count as never drawn"


class PromptSampler:
    """Draws prompts of a capability; a prompt in flight is not drawn again.

    With a window on a stream, prompts that were drawn make room for the next ones of the stream, which take their rows.
    See `SELECTIONS` for the ways of choosing.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt] | PromptWindow,
        selection: str,
        group_size: int,
        seed: int,
        curriculum: Curriculum | None = None,
    ) -> None:
        """Takes the prompts in a fixed order.

        Args:
            prompts: read once; later only those that are drawn. Or a window on a stream.
            selection: `signal`, `uniform`, `dynamic_sampling` or `pools`.
            group_size: rollouts in a group.
            seed: of the draws.
            curriculum: the numbers that the selection goes by.
        """
        self.window = prompts if isinstance(prompts, PromptWindow) else None
        self.prompts = prompts.prompts if isinstance(prompts, PromptWindow) else prompts
        self._stats = StatsTable(self.prompts, group_size)
        self._rng = np.random.default_rng(seed)
        in_order = self.window is not None and selection in IN_ORDER
        kind = (IN_ORDER if in_order else SELECTIONS)[selection]
        self.selection = kind(self._stats, curriculum or Curriculum(), self._rng)
        self.name = f"{selection} in order" if in_order else selection  # what a state is of
        self._numbers = {name: number for number, name in enumerate(self._stats.capabilities)}
        self.scan: Mapping[str, tuple[int, int]] = {}
        """Prompt id → samples and solved ones, by the policy of version 0: of prompts that take a row from now on."""
        self._in_flight: Counter[int] = Counter()
        self._together = together(len(self.prompts))
        self._finished: list[tuple[int, Sequence[bool] | None, int]] = []  # draws that are still to be settled

    @property
    def capabilities(self) -> list[str]:
        """The capabilities of the prompts, in the order of their first appearance."""
        return list(self._numbers)

    def draw(self, capability: str, version: int) -> int:
        """The row of the next prompt of a capability, as of a policy version; it is in flight until observed."""
        number = self._numbers[capability]
        if version > self.selection.version:
            self.settle()
            self.selection.advance(version)
        row = self.selection.pick(number)
        if row is None and self._finished:
            self.settle()
            row = self.selection.pick(number)
        if row is None:  # a set smaller than what is in flight: a prompt is then drawn twice
            rows = [row for row in self._in_flight if self._capability(row) == number]
            row = rows[int(self._rng.random() * len(rows))]
        self.selection.sets.remove(row)
        self._in_flight[row] += 1
        return row

    def hold(self, row: int) -> None:
        """Counts a draw of an earlier life of the run as in flight: it is made again."""
        self.selection.sets.remove(row)
        self._in_flight[row] += 1

    def observe(self, row: int, outcomes: Sequence[bool] | None, version: int) -> None:
        """Ends a draw: with the outcomes of its group, or with None if there are none."""
        self._finished.append((row, outcomes, version))
        if len(self._finished) >= self._together:
            self.settle()

    @property
    def stats(self) -> StatsTable:
        """The statistics of all groups so far."""
        self.settle()
        return self._stats

    @property
    def entered(self) -> StatsTable:
        """The statistics as the next draw finds them: of all groups but those that are still to be entered."""
        return self._stats

    def settle(self) -> None:
        """Enters the finished draws into the statistics, and puts their prompts back."""
        finished, self._finished = self._finished, []
        if not finished:
            return
        groups = [(row, outcomes, version) for row, outcomes, version in finished if outcomes is not None]
        self._stats.observe(groups)
        self.selection.observed(np.array(list(dict.fromkeys(row for row, _, _ in groups)), dtype=np.int64))
        self._in_flight.subtract(row for row, _, _ in finished)
        back = [row for row in dict.fromkeys(row for row, _, _ in finished) if self._in_flight[row] <= 0]
        drawn = [row for row in back if self._in_flight[row] == 0]  # the groups of a scan were not
        for row in back:
            del self._in_flight[row]
        self.selection.put(back)
        if self.window is not None and drawn:
            self._renew(self.window, drawn)

    def observe_scan(self, scan: Mapping[str, tuple[int, int]]) -> None:
        """Starts from what a scan says of each prompt id: samples, and solved ones, as groups of version 0.

        Groups have the size of the run's own, and outcomes are in random order: which of the samples solved is not
        known. What a window takes in later has its scan by then.
        """
        self.scan = scan
        if not scan:
            return
        for row, prompt in enumerate(self.prompts):
            for outcomes in self._scanned(prompt):
                self.observe(row, outcomes, 0)
        self.review()

    def _scanned(self, prompt: Prompt) -> list[list[bool]]:
        """The groups of a prompt in the scan, the same ones whenever it is asked for."""
        samples, solved = self.scan.get(prompt.prompt_id, (0, 0))
        if not samples:
            return []
        rng = np.random.default_rng(list(prompt.prompt_id.encode()))
        outcomes: list[bool] = rng.permutation(np.arange(samples) < solved).tolist()
        size = self._stats.group_size
        return [outcomes[start : start + size] for start in range(0, samples, size)]

    def _enter_scan(self, row: int) -> None:
        """What the scan says of a prompt that takes a row while the run is under way."""
        self._stats.observe([(row, outcomes, 0) for outcomes in self._scanned(self.prompts[row])], alone=True)

    def review(self) -> None:
        """Puts prompts where they belong by all that is known by now, while none is in flight: when the first ones of a
        scan were entered, little was known of their kinds.
        """
        seen = np.flatnonzero(self.stats.attempts_P)
        self.selection.observed(seen)
        self.selection.put(seen.tolist())

    def _renew(self, window: PromptWindow, drawn: Sequence[int]) -> None:
        """Lets the next prompts of the stream in, now that these draws have ended."""
        replaced = []
        for row in self.selection.leaving(np.array(drawn)):
            prompt = window.replace(row)
            if prompt is not None:
                self._stats.replace(row, prompt, self.selection.version)
                self._enter_scan(row)
                replaced.append(row)
        self.selection.replaced(replaced)

    def _capability(self, row: int) -> int:
        return int(self._stats.capability(np.array([row]))[0])

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything but the draws in flight, as copies; what is no array is JSON.

        Nothing is changed by it: what is drawn next must not depend on when a checkpoint is taken.
        """
        state = {
            "rng": self._rng.bit_generator.state, "selection": self.name, "version": self.selection.version,
            "ahead": self.selection.ahead(),
            "finished": [
                (row, None if outcomes is None else [bool(outcome) for outcome in outcomes], version)
                for row, outcomes, version in self._finished
            ],
        }  # fmt: skip
        columns = {f"selection/{name}": column for name, column in self.selection.columns().items()}
        return {"sampler": np.array(json.dumps(state)), **columns, **self._stats.state_dict()}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> Restored:
        """Restores what `state_dict` gave, perhaps of other prompts: removed ones are dropped, new ones are unseen."""
        saved: dict[str, Any] = json.loads(str(state["sampler"]))
        rows, places = self._stats.load_state_dict(state)
        now = np.full(len(state["prompt_ids"]), NONE)
        now[places] = rows
        new = np.setdiff1d(np.arange(len(self._stats.prompt_ids)), rows).tolist()
        for row in new if self.scan else ():
            self._enter_scan(row)
        self._rng.bit_generator.state = saved["rng"]
        self._in_flight.clear()
        self._finished.clear()
        if saved["selection"] == self.name:
            columns = self.selection.columns()
            for name, column in columns.items():
                column[rows] = state[f"selection/{name}"][places]
            ahead = now[np.array(saved.get("ahead", ()), dtype=np.int64)]
            self.selection.restore(columns, saved["version"])
            self.selection.restore_ahead(ahead[ahead != NONE].tolist())
            if self.scan:
                self.selection.replaced(new)
        else:  # its columns mean something else
            self.selection.advance(saved["version"])
            self.review()
        for row, outcomes, version in saved.get("finished", ()):
            if now[row] != NONE:
                self.hold(int(now[row]))
                self._finished.append((int(now[row]), outcomes, version))
        return Restored(len(rows), len(state["prompt_ids"]) - len(rows), len(self._stats.prompt_ids) - len(rows))

    def save(self, directory: Path) -> None:
        """Writes `sampler.npz` into a checkpoint that is being made, and the window beside it, if there is one."""
        np.savez(directory / FILE, **self.state_dict())  # type: ignore[arg-type]
        if self.window is not None:
            self.window.save(directory)

    def load(self, directory: Path) -> Restored:
        """Reads what `save` wrote, but the window, which is read when it is made.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        path = directory / FILE
        try:
            with np.load(path, allow_pickle=False) as state:
                return self.load_state_dict(dict(state))
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path}: no state of a sampler ({error}); choose another checkpoint") from None
