"""Running a study's stages in order, each once, and remembering what was done."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aplens._documents import check, take
from aplens._io import clear_abandoned, fingerprint, read_json, write_json
from aplens._processes import join_processes
from aplens._sums import changed_files, sum_files
from aplens._words import shorten


class Reporter:
    """Told what a study does. This one says nothing; `aplens.cli` has one for the terminal."""

    def start(self, stage: str, message: str) -> None:
        """A stage begins."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps of the stage are done."""

    def say(self, message: str) -> None:
        """Something worth reading."""

    def finish(self, stage: str, seconds: float, wrote: Sequence[Path]) -> None:
        """A stage ended, having written these files."""

    def skip(self, stage: str, wrote: Sequence[Path]) -> None:
        """A stage was done before, with the same settings."""


@dataclass(frozen=True)
class Stage:
    """One step of a study.

    Attributes:
        name: Also its command.
        message: What it does, for the reader of a progress line.
        settings: Everything its result depends on, beside what the stages before it wrote.
        outputs: The files and folders it writes, relative to the study's folder.
        run: Does the work.
        shared: Whether, of several processes, all take part; else only the first one runs it.
        defaults: What a setting that a newer aplens has added stands for in a stage done before.
    """

    name: str
    message: str
    settings: Mapping[str, Any]
    outputs: Sequence[str]
    run: Callable[[], None]
    shared: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class StageClock:
    """When a stage started, and, once it has ended, how many seconds it took."""

    started: float
    seconds: float = 0.0


class StageRecord:
    """What was done in a folder, in `stages.json`, so that the same command goes on, not again.

    Args:
        folder: The study's folder.

    Raises:
        ValueError: When the record is damaged; the message names the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "stages.json"
        self._entries: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self._entries = _read_entries(self.path)

    @property
    def seconds(self) -> dict[str, float]:
        """How long each stage took, interrupted runs included."""
        return {name: entry["seconds"] for name, entry in self._entries.items()}

    def is_done(self, stage: Stage, upstream: str) -> bool:
        """Whether this stage ended here before, and its files are still there.

        Raises:
            ValueError: When it began here with other settings or other inputs, or a file that it
                wrote was changed since.
        """
        entry = self._entries.get(stage.name)
        if entry is None:
            return False
        self._require_same(stage, upstream, entry)
        return entry["finished"] and self._has_all(stage, entry)

    def _has_all(self, stage: Stage, entry: Mapping[str, Any]) -> bool:
        """Whether nothing that a stage wrote is missing; what was changed is refused."""
        changed, touched = changed_files(self.folder, entry["wrote"])
        if changed:
            raise ValueError(
                f"{self.folder / changed[0]} is not what stage {stage.name!r} wrote there: it was "
                f"damaged or replaced. Do the stage again with --redo {stage.name}"
            )
        if touched:
            write_json(self.path, self._entries)
        names = [*stage.outputs, *entry["wrote"]]
        return all((self.folder / name).exists() for name in names)

    def _require_same(self, stage: Stage, upstream: str, entry: Mapping[str, Any]) -> None:
        way_out = f"use another folder, or do the stage again with --redo {stage.name}"
        now = _jsonable(stage.settings)
        before = _jsonable(stage.defaults) | entry["settings"]
        for key in [*entry["settings"], *now]:
            # Folders of older versions have "" or 0 where a setting was left out.
            if (now.get(key) or None) != (before.get(key) or None):
                raise ValueError(
                    f"{self.folder} holds stage {stage.name!r} with {key} = "
                    f"{shorten(before.get(key))}, now {shorten(now.get(key))}: {way_out}"
                )
        if entry["upstream"] != upstream:
            raise ValueError(
                f"{self.folder} holds stage {stage.name!r} made from other inputs than the stages "
                f"before it now have: {way_out}"
            )

    @contextmanager
    def noting(self, stage: Stage, upstream: str) -> Iterator[StageClock]:
        """Note a stage's settings before it starts, and its time when it ends, however it does.

        So a half-done stage is never mixed with one of other settings.
        """
        self._begin(stage, upstream)
        clock = StageClock(time.monotonic())
        finished = False
        try:
            yield clock
            finished = True
        finally:
            clock.seconds = time.monotonic() - clock.started
            self._end(stage, clock.seconds, finished=finished)

    def _begin(self, stage: Stage, upstream: str) -> None:
        self._entries[stage.name] = {
            "finished": False,
            "settings": _jsonable(stage.settings),
            "upstream": upstream,
            "wrote": {},
            "seconds": self.seconds.get(stage.name, 0.0),
        }
        write_json(self.path, self._entries)

    def _end(self, stage: Stage, seconds: float, *, finished: bool) -> None:
        entry = self._entries[stage.name]
        entry["seconds"] += seconds
        entry["finished"] = finished
        if finished:
            entry["wrote"] = sum_files(self.folder, [self.folder / name for name in stage.outputs])
        write_json(self.path, self._entries)

    def upstream_after(self, stage: Stage, upstream: str) -> str:
        """What the stages after this one are made from: its settings and the files it wrote."""
        entry = self._entries[stage.name]
        contents = {name: noted["sha256"] for name, noted in entry["wrote"].items()}
        return fingerprint([upstream, stage.name, entry["settings"], contents])

    def forget(self, stages: Sequence[Stage]) -> None:
        """Remove what these stages wrote, so that they run again from their beginning."""
        for stage in stages:
            self._entries.pop(stage.name, None)
            for name in stage.outputs:
                path = self.folder / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        write_json(self.path, self._entries)


def _read_entries(path: Path) -> dict[str, dict[str, Any]]:
    entries = read_json(path)
    try:
        for name, entry in check(entries, dict, "it").items():
            check(entry, dict, name)
            take(entry, "finished", bool, f"{name}.")
            take(entry, "settings", dict, f"{name}.")
            take(entry, "upstream", str, f"{name}.")
            for file, noted in take(entry, "wrote", dict, f"{name}.").items():
                take(check(noted, dict, file), "sha256", str, f"{name}.wrote.{file}.")
            if take(entry, "seconds", float, f"{name}.") < 0:
                raise ValueError(f"{name}.seconds must not be negative")
    except ValueError as error:
        raise ValueError(f"{path} is no record of stages: {error}") from error
    return entries


def run_stages(
    stages: Sequence[Stage], folder: Path, reporter: Reporter, *, redo: str | None = None
) -> None:
    """Run the stages in order, skipping those that ended before with the same settings.

    Of several processes (`accelerate launch`) the first one decides and keeps the record; the
    others take part in the stages that are shared, and wait through the rest.

    Args:
        stages: The stages, each of which may use what those before it wrote.
        folder: Where they write.
        reporter: Told what happens.
        redo: The stage to run again from its beginning, and with it all that follow.

    Raises:
        FolderInUseError: When another run is working in the folder.
        ValueError: When the folder holds a stage with other settings, before that stage starts.
    """
    processes = join_processes()
    names = [stage.name for stage in stages]
    if redo is not None and redo not in names:
        raise ValueError(f"cannot redo {redo!r}: the stages of this run are {names}")
    with processes.own(folder):
        record = StageRecord(folder) if processes.is_main else None
        if record and redo is not None:
            record.forget(stages[names.index(redo) :])
        upstream = ""
        for stage in stages:
            wrote = [folder / name for name in stage.outputs]
            done = record.is_done(stage, upstream) if record else False
            if processes.from_main(done):
                reporter.skip(stage.name, wrote)
            elif record:
                with record.noting(stage, upstream) as clock:
                    reporter.start(stage.name, stage.message)
                    for path in filter(Path.is_dir, wrote):
                        clear_abandoned(path)
                    stage.run()
                    processes.wait()
                reporter.finish(stage.name, clock.seconds, wrote)
            else:
                if stage.shared:
                    stage.run()
                processes.wait()
            if record:
                upstream = record.upstream_after(stage, upstream)


def _jsonable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As the settings come back from JSON: tuples are lists there."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items()}
