"""Running a study's stages in order, each once, and remembering what was done."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from aplens._io import clear_abandoned, describe_differences, fingerprint, sha256_of_file
from aplens._processes import join_processes
from aplens._store import Store
from aplens._sums import changed_files, sum_files

_NOTES = "stages"

#: Seconds between two notes of how long a stage has been running.
_NOTED_EVERY = 2.0


class Reporter:
    """Told what a study does. This one says nothing; `aplens.study.reporting` shows it."""

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
    """One step of a study, which writes `outputs` into its folder.

    Its result depends on `settings`, tables that JSON can hold, and on what the stages before it
    wrote. Of several processes all take part in a shared one.
    """

    name: str
    message: str
    settings: Mapping[str, Any]
    outputs: Sequence[str]
    run: Callable[[], None]
    shared: bool = False


class StageRecord:
    """What was done in a study's folder, in `stages/`: the same command goes on, not again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._store = Store(folder / _NOTES, "stages", {})

    @classmethod
    def find(cls, folder: Path) -> StageRecord | None:
        """The record of a folder that is only read; None where results lie alone."""
        return cls(folder) if (folder / _NOTES).is_dir() else None

    @property
    def seconds(self) -> dict[str, float]:
        """How long each stage took, interrupted runs included, in the order of stages.

        Of a run that was killed all but the last seconds are counted.
        """
        entries = {name: self._entry(name) for name in self._store}
        ordered = sorted(entries, key=lambda name: entries[name]["place"])
        return {name: entries[name]["seconds"] for name in ordered}

    def _entry(self, name: str) -> dict[str, Any]:
        """What was noted of a stage; empty when it never began."""
        if name not in self._store:
            return {}
        try:
            return self._store.read(name)
        except ValueError as error:
            raise ValueError(f"{error}. Do the stage again with --redo {name}") from error

    def is_done(self, stage: Stage, upstream: str) -> bool:
        """Whether this stage ended here before, and its files are still there.

        Other settings or other inputs, and files that were changed since, are refused.
        """
        entry = self._entry(stage.name)
        if not entry:
            return False
        self._require_same(stage, upstream, entry)
        return entry["finished"] and self._has_all(stage, entry)

    def drop_failed(self, stage: Stage, upstream: str) -> bool:
        """Remove what a stage wrote that failed with other settings; say whether that was so."""
        entry = self._entry(stage.name)
        if not entry.get("failed"):
            return False
        try:
            self._require_same(stage, upstream, entry)
        except ValueError:
            self.forget([stage])
            return True
        return False

    def _has_all(self, stage: Stage, entry: Mapping[str, Any]) -> bool:
        """Whether nothing that a stage wrote is missing; what was changed is refused."""
        changed, touched = changed_files(self.folder, entry["wrote"])
        if changed:
            raise self._is_other(changed[0], stage.name)
        if touched:
            self._store.write(stage.name, entry)
        names = [*stage.outputs, *entry["wrote"]]
        return all((self.folder / name).exists() for name in names)

    def require_unchanged(self, name: str) -> None:
        """Refuse a file, or one in a folder, of which a single bit is not what its stage wrote.

        Of files that no stage has noted nothing is known, and nothing is refused.
        """
        for stage in self._store:
            for file, noted in self._entry(stage)["wrote"].items():
                is_meant = Path(file).is_relative_to(name)
                if is_meant and sha256_of_file(self.folder / file) != noted["sha256"]:
                    raise self._is_other(file, stage)

    def _is_other(self, file: str, stage: str) -> ValueError:
        return ValueError(
            f"{self.folder / file} is not what stage {stage!r} wrote there: it was damaged or "
            f"replaced. Do the stage again with --redo {stage}"
        )

    def _require_same(self, stage: Stage, upstream: str, entry: Mapping[str, Any]) -> None:
        differences = list(describe_differences(entry["settings"], _jsonable(stage.settings)))
        if entry["upstream"] != upstream:
            differences.append("it was made from other inputs than the stages before it now have")
        if differences:
            rest = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise ValueError(
                f"{self.folder} holds another stage {stage.name!r} ({'; '.join(differences[:3])}"
                f"{rest}): use another folder, or do the stage again with --redo {stage.name}"
            )

    @contextmanager
    def noting(self, stage: Stage, upstream: str, place: int) -> Iterator[None]:
        """Note a stage's settings before it starts, its time while it runs, and how it ended.

        So a half-done stage is never mixed with one of other settings, and the time of a run that
        is killed is counted.
        """
        started, before = time.monotonic(), self._entry(stage.name)
        entry = {
            "place": place,
            "settings": _jsonable(stage.settings),
            "upstream": upstream,
        }

        def note(finished: bool = False, failed: bool = False) -> None:
            seconds = before.get("seconds", 0.0) + time.monotonic() - started
            wrote = [self.folder / name for name in stage.outputs] if finished else []
            more = {
                "finished": finished,
                "failed": failed,
                "seconds": seconds,
                "wrote": sum_files(self.folder, wrote),
            }
            self._store.write(stage.name, entry | more)

        note()
        finished = failed = False
        try:
            with _repeating(note, _NOTED_EVERY):
                yield
            finished = True
        except Exception:  # Ctrl-C is none: an interrupted stage keeps what it did
            failed = True
            raise
        finally:
            note(finished, failed)

    def upstream_after(self, stage: Stage, upstream: str) -> str:
        """What the stages after this one are made from: its settings and the files it wrote."""
        entry = self._entry(stage.name)
        contents = {name: noted["sha256"] for name, noted in entry["wrote"].items()}
        return fingerprint([upstream, stage.name, entry["settings"], contents])

    def forget(self, stages: Sequence[Stage]) -> None:
        """Remove what these stages wrote, so that they run again from their beginning."""
        for stage in stages:
            outputs = [self.folder / name for name in stage.outputs]
            for path in [self._store.file(stage.name), *outputs]:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


@contextmanager
def _repeating(action: Callable[[], object], seconds: float) -> Iterator[None]:
    """Do something every few seconds, in a thread of its own, until the block ends."""
    ended = Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            with suppress(OSError):  # the block, and what follows it, will meet a full disk too
                action()

    thread = Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run_stages(
    stages: Sequence[Stage], folder: Path, reporter: Reporter, *, redo: str | None = None
) -> None:
    """Run the stages in order, skipping those that ended before with the same settings.

    Of several processes (`accelerate launch`) the first one decides and keeps the record; the
    others take part in the stages that are shared, and wait through the rest. `redo` names the
    stage to run again from its beginning, and with it all that follow.
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
        for place, stage in enumerate(stages):
            wrote = [folder / name for name in stage.outputs]
            if record and record.drop_failed(stage, upstream):
                reporter.say(f"{stage.name} failed here with other settings: begun again")
            done = record.is_done(stage, upstream) if record else False
            if processes.from_main(done):
                reporter.skip(stage.name, wrote)
            elif record:
                started = time.monotonic()
                for path in filter(Path.is_dir, [*wrote, folder / _NOTES]):
                    clear_abandoned(path)
                with record.noting(stage, upstream, place):
                    reporter.start(stage.name, stage.message)
                    stage.run()
                    processes.wait()
                reporter.finish(stage.name, time.monotonic() - started, wrote)
            else:
                if stage.shared:
                    stage.run()
                processes.wait()
            if record:
                upstream = record.upstream_after(stage, upstream)


def _jsonable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As the settings come back from JSON: tuples are lists there."""
    return json.loads(json.dumps(dict(settings)))
