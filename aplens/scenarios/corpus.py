"""Corpora: files read in place from a folder, a zip archive, a dataset or whatever has texts."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import stat
import struct
import sysconfig
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from aplens._words import shorten
from aplens.scenarios.scenario import ScenarioError
from aplens.scenarios.tasks import get_language

MAX_BYTES = 1_000_000
"""Larger files are generated more often than written, and are skipped."""

_PIECE = 4096

_Reader: TypeAlias = Callable[[], bytes]

_SHUFFLED = 1000  # rows held in memory to shuffle among; shards are shuffled as well

# What reading a damaged archive or its members raises. A RuntimeError is zipfile's word for
# "encrypted" and for what it cannot unpack; a ValueError comes of sizes, dates and names.
_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)

# What reading an empty or damaged dataset raises. Arrow's errors are mostly ValueErrors; a
# StopIteration is what no rows become, and a RuntimeError what a StopIteration does in a generator.
_UNREADABLE_ROWS = (StopIteration, RuntimeError, ValueError, KeyError)


class SourceFile(NamedTuple):
    """A file of a corpus.

    Attributes:
        path: Its name inside the corpus, with forward slashes.
        text: Its text.
    """

    path: str
    text: str


@runtime_checkable
class Corpus(Protocol):
    """Source files to mine scenarios from.

    Attributes:
        skipped: How many files the latest pass left out, by reason.
    """

    skipped: Counter[str]

    def files(self, seed: int = 0) -> Iterator[SourceFile]:
        """Yield the files, shuffled by the seed and by nothing else.

        Raises:
            ScenarioError: There is nothing to yield.
        """


class SkipFile(Exception):
    """A file is left out; the message is the reason that it is counted under."""


def check_file(file: Any) -> SourceFile:
    """What a corpus yielded, if its path and its text are texts; `SkipFile` of what UTF-8 lacks."""
    path, text = (getattr(file, name, file) for name in SourceFile._fields)
    if not isinstance(path, str) or not isinstance(text, str):
        raise ScenarioError(
            "expected a corpus of files whose path and text are str, got path "
            f"{shorten(path)} ({type(path).__name__}) and text of type {type(text).__name__}"
        )
    try:
        path.encode()  # a scenario is saved with its file's name
        text.encode()
    except UnicodeEncodeError as error:  # a lone surrogate
        raise SkipFile("not UTF-8") from error
    return SourceFile(path, text)


class TextCorpus:
    """Texts by name, each read only when its turn comes.

    Args:
        texts: By name, what reads the text, which is a str; it may raise `SkipFile`.
        name: What the texts are, for readers.
        repeats: Whether equal texts are files of their own. Else the first to come stays.
    """

    def __init__(
        self, texts: Mapping[str, Callable[[], str]], name: str = "texts", *, repeats: bool = False
    ) -> None:
        self.skipped: Counter[str] = Counter()
        self._texts = dict(sorted(texts.items()))
        self._name = name
        self._repeats = repeats

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._texts)} {self._name})"

    def files(self, seed: int = 0) -> Iterator[SourceFile]:
        """Yield the files in a random order that the seed decides.

        Raises:
            ScenarioError: There is nothing to yield, or what was read is no text.
        """
        self.skipped = Counter()
        seen = set[str]()
        for read in self._readers(seed):
            try:
                file = check_file(read())
                if file.text in seen:
                    raise SkipFile("seen before")
                if not self._repeats:
                    seen.add(file.text)
                if not file.text.strip():
                    raise SkipFile("empty")
            except SkipFile as reason:
                self.skipped[str(reason)] += 1
            else:
                yield file

    def _readers(self, seed: int) -> Iterator[Callable[[], SourceFile]]:
        """What reads each file, in the order that the seed decides; it may raise `SkipFile`."""
        if not self._texts:
            raise ScenarioError(f"{self} has nothing to read")
        names = list(self._texts)
        for index in np.random.default_rng(seed).permutation(len(names)):
            yield partial(self._read, names[index])

    def _read(self, name: str) -> SourceFile:
        return SourceFile(name, self._texts[name]())


class DatasetCorpus(TextCorpus):
    """A column of a Hugging Face dataset, streamed: only the rows that are read are fetched.

    Args:
        name: Dataset name on the hub, a local folder, or a format such as "parquet" or "json".
        column: Column with the files' text.
        path_column: Column with the files' paths. A file without a path (no column, or a row with
            null, NaN or blanks) is named by a hash of its text, so that the same text always has
            the same name.
        split: Split of the dataset.
        **options: Passed on to `datasets.load_dataset`, such as `data_files` or `revision`.

    Raises:
        ImportError: The package `datasets` is not installed.
        OSError: There is no such dataset or file, or it cannot be reached.
        ScenarioError: The dataset is empty or damaged.
    """

    def __init__(
        self,
        name: str,
        *,
        column: str,
        path_column: str | None = None,
        split: str = "train",
        **options: Any,
    ) -> None:
        try:
            import datasets
        except ImportError as error:
            raise ImportError("a DatasetCorpus needs: pip install 'aplens[hub]'") from error
        where = {key: options[key] for key in ("data_dir", "data_files") if options.get(key)}
        label = ", ".join([repr(name), *(f"{key}={value}" for key, value in where.items())])
        super().__init__({}, label, repeats=True)
        self._column, self._path_column = column, path_column
        try:
            self._dataset = datasets.load_dataset(name, split=split, streaming=True, **options)
        except _UNREADABLE_ROWS as error:
            raise self._unreadable(error) from error

    def __repr__(self) -> str:
        return f"DatasetCorpus({self._name}, column={self._column!r})"

    def _unreadable(self, error: Exception) -> ScenarioError:
        problem = f"cannot be read: {error}" if str(error) else "has no rows"
        return ScenarioError(f"{self} {problem}")

    def _readers(self, seed: int) -> Iterator[Callable[[], SourceFile]]:
        rows = self._rows(seed)
        first = next(rows, None)
        if first is None:
            raise ScenarioError(f"{self} has no rows")
        for column in filter(None, (self._column, self._path_column)):
            if column not in first:
                raise ScenarioError(f"{self} has no column {column!r}; it has {list(first)}")
        for row in chain([first], rows):
            yield partial(self._source_file, row)

    def _rows(self, seed: int) -> Iterator[dict[str, Any]]:
        try:
            yield from self._dataset.shuffle(seed=seed, buffer_size=_SHUFFLED)
        except _UNREADABLE_ROWS as error:
            raise self._unreadable(error) from error

    def _source_file(self, row: dict[str, Any]) -> SourceFile:
        text = row[self._column]
        if not isinstance(text, str):
            raise SkipFile("no text")
        data = text.encode(errors="surrogatepass")
        if len(data) > MAX_BYTES:
            raise SkipFile("too large")
        path = row[self._path_column] if self._path_column else None
        named = path is not None and path == path and str(path).strip()  # NaN is not itself
        return SourceFile(
            str(path) if named else f"sha256-{hashlib.sha256(data).hexdigest()[:16]}", text
        )


def open_corpus(
    source: str | Path | Corpus,
    language: str = "java",
    *,
    prefix: str = "",
    exclude: Collection[str] = (),
) -> Corpus:
    """The source files of a folder or a zip archive, which is not unpacked; a corpus as it is.

    Args:
        source: A folder, a zip archive such as a JDK's `src.zip`, or a corpus.
        language: Decides by their suffix which files of a folder or an archive are read.
        prefix: Only files whose path in the folder or archive begins so, such as "java.base/".
        exclude: Names of folders that are not entered. Hidden ones of a folder never are.

    Raises:
        ScenarioError: There is nothing at the path, or a file that is no zip archive or a damaged
            one, or no file of the language; `source` is neither a path nor a corpus, or is a corpus
            and comes with a prefix or names to exclude.
    """
    if isinstance(source, Corpus):
        if prefix or exclude:
            raise ScenarioError(
                "prefix and exclude choose files of a folder or a zip archive, "
                f"got them with a {type(source).__name__}"
            )
        return source
    if not isinstance(source, (str, Path)):
        lacking = [name for name in ("files", "skipped") if not hasattr(source, name)]
        raise ScenarioError(
            f"expected a path or a Corpus, got {type(source).__name__}, which has no "
            f"{' and no '.join(lacking)}"
        )
    path = Path(source).expanduser()
    if not path.exists():
        raise ScenarioError(f"expected a folder or a zip archive, but there is nothing at {path}")
    suffixes = get_language(language).suffixes
    stored = _folder_files(path, exclude) if path.is_dir() else _archive_files(path, exclude)
    texts = {
        name: partial(_read_text, read)
        for name, read in stored
        if name.startswith(prefix) and name.endswith(suffixes)
    }
    kind = f"{' or '.join(suffixes)} files in {path}" + (f" below {prefix}" if prefix else "")
    if not texts:
        raise ScenarioError(f"there are no {kind}")
    return TextCorpus(texts, kind, repeats=True)


def _folder_files(folder: Path, exclude: Collection[str]) -> Iterator[tuple[str, _Reader]]:
    for place, subfolders, names in os.walk(folder):
        subfolders[:] = [
            name for name in subfolders if name not in exclude and not name.startswith(".")
        ]
        for name in names:
            path = Path(place) / name
            yield path.relative_to(folder).as_posix(), partial(_read_file, path)


def _read_file(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe may wait for ever
        raise SkipFile("no regular file")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _archive_files(path: Path, exclude: Collection[str]) -> Iterator[tuple[str, _Reader]]:
    try:
        archive = zipfile.ZipFile(path)
    except _UNREADABLE as error:
        raise ScenarioError(f"{path} is not a readable zip archive: {error}") from error
    for name in archive.namelist():
        if not set(name.split("/")[:-1]) & set(exclude):
            yield name, partial(_read_member, archive, name)


def _read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The file, or of one that is larger than it says, a little more than `MAX_BYTES`."""
    if archive.getinfo(name).file_size > MAX_BYTES:
        raise SkipFile("too large")
    # In small pieces: a member may unpack to far more than it says, and its decompressor is handed
    # whatever was read of the archive at once.
    data = bytearray()
    with archive.open(name) as member:
        while len(data) <= MAX_BYTES and (piece := member.read(_PIECE)):
            data += piece
    return bytes(data)


def _read_text(read: _Reader) -> str:
    try:
        data = read()
    except _UNREADABLE as error:
        raise SkipFile("unreadable") from error
    if len(data) > MAX_BYTES:
        raise SkipFile("too large")
    try:
        return data.decode("utf-8-sig")
    except UnicodeError as error:
        raise SkipFile("not UTF-8") from error


def python_standard_library() -> Corpus:
    """The running interpreter's standard library, without its tests and installed packages."""
    return open_corpus(
        sysconfig.get_paths()["stdlib"],
        "python",
        exclude=("site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"),
    )


_JDK_HOMES = (
    "/usr/lib/jvm/*",
    "/usr/java/*",
    "/Library/Java/JavaVirtualMachines/*/Contents/Home",
    "/opt/homebrew/opt/openjdk*/libexec/openjdk.jdk/Contents/Home",
    "/usr/local/opt/openjdk*/libexec/openjdk.jdk/Contents/Home",
)


def find_jdk_source() -> Path | None:
    """A JDK's `src.zip`: that of JAVA_HOME when it has one, else of the newest JDK installed.

    Returns:
        Its path, or None where no JDK with sources is found.
    """
    if (home := os.environ.get("JAVA_HOME")) and (source := _source_of(Path(home))):
        return source
    homes = chain.from_iterable(Path("/").glob(pattern.lstrip("/")) for pattern in _JDK_HOMES)
    newest_first = sorted(homes, key=lambda home: (_jdk_version(home), str(home)), reverse=True)
    return next(filter(None, map(_source_of, newest_first)), None)


def _source_of(home: Path) -> Path | None:
    candidates = (home / "lib" / "src.zip", home / "src.zip")  # the latter up to Java 8
    return next((path for path in candidates if path.is_file()), None)


def _jdk_version(home: Path) -> tuple[int, ...]:
    try:
        release = (home / "release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    version = re.search(r'^JAVA_VERSION="([\d._]+)', release, re.MULTILINE)
    numbers = tuple(int(number) for number in re.findall(r"\d+", version[1])) if version else ()
    return numbers[1:] if numbers[:1] == (1,) else numbers  # Java 8 calls itself 1.8
