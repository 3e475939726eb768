"""What a person sees while a stage runs: bars with rates and times left on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

console = Console(stderr=True, highlight=False)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} {task.fields.get('unit', 'it')}/s")


@contextmanager
def bar(description: str, total: int, unit: str = "it", done: int = 0) -> Iterator[Bar]:
    """A progress bar of `total` units; where there is no terminal, a line when it starts and one when it ends."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=not console.is_terminal) as progress:
        shown = Bar(progress, description, total, unit, done)
        yield shown
    if not console.is_terminal:
        say(f"{description}: {shown.done} of {total} {unit}")


class Bar:
    """A running bar."""

    def __init__(self, progress: Progress, description: str, total: int, unit: str, done: int) -> None:
        """Shown from now on."""
        self._progress = progress
        self._task = progress.add_task(description, total=total, completed=done, unit=unit)

    def advance(self, count: int = 1) -> None:
        """Some units are done."""
        self._progress.advance(self._task, count)

    @property
    def done(self) -> int:
        """Units done so far."""
        return int(self._progress.tasks[0].completed)


def say(line: str) -> None:
    """One line, above any bar that is shown."""
    console.print(line, soft_wrap=True, markup=False)  # what a program said may look like markup
