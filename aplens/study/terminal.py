"""A study's progress and errors, as the terminal shows them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from aplens._processes import join_processes
from aplens.study.stages import Reporter

#: Without a terminal a line is printed this often, in seconds, in place of a moving bar.
_LINE_EVERY = 5.0


@contextmanager
def reporting() -> Iterator[tuple[Console, TerminalReporter]]:
    """Show progress; an error that says what to mend becomes one line and exit code 1.

    Any other is a fault of the program and keeps its traceback. Of several processes only the first
    one speaks, and whichever meets an error.
    """
    console = Console(stderr=False, highlight=False)
    try:
        if not join_processes().is_main:
            console.quiet = True
        with TerminalReporter(console).running() as reporter:
            yield console, reporter
    except KeyboardInterrupt:
        console.print("\nInterrupted. What was finished is kept: the same command goes on.")
        raise SystemExit(130) from None
    except Exception as error:
        if not _is_expected(error):
            raise
        console.quiet = False
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from error


def _is_expected(error: Exception) -> bool:
    """Whether an error is a refusal in words, of a kind of our own, the disk's or memory's."""
    if isinstance(error, ValueError | OSError):
        return True
    if isinstance(error, ImportError):
        return error.name is None  # a package to install, said in words; Python's own has a name
    import torch

    ours = type(error).__module__.partition(".")[0] == "aplens"
    return ours or isinstance(error, torch.OutOfMemoryError)


class TerminalReporter(Reporter):
    """Shows stages and their progress: a moving bar on a terminal, lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("so far,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._last_line = 0.0

    @contextmanager
    def running(self) -> Iterator[TerminalReporter]:
        """Show the bar for as long as the study runs."""
        with self._progress:
            yield self

    def start(self, stage: str, message: str) -> None:
        """A stage begins."""
        self._last_line = time.monotonic()
        self._print(f"{stage}: {message}")
        self._task = self._progress.add_task(stage, total=None, note="")

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of the stage are done."""
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)
        if not self._console.is_terminal and time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            self._print(f"  {done} of {total}  {note}".rstrip())

    def say(self, message: str) -> None:
        """Something worth reading."""
        self._print(f"  {message}")

    def finish(self, stage: str, seconds: float, wrote: Sequence[Path]) -> None:
        """A stage ended, having written these files."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._print(f"  done in {seconds:.0f} s, wrote {_listed(wrote)}")

    def skip(self, stage: str, wrote: Sequence[Path]) -> None:
        """A stage was done before, with the same settings."""
        self._print(f"{stage}: done before, in {_listed(wrote)}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
        sys.stdout.flush()


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in paths)
