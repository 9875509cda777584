"""Runs that two processes share, launched for real: the result is that of one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from study_fixtures import STUDY

from aplens._io import FolderInUseError, own_folder
from aplens._processes import ALONE, Processes, join_processes
from aplens.correctness import Observations

TESTS = Path(__file__).parent


def launch(*command, n=2):
    """Run a script in `n` processes of one thread each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Not --cpu, which starts a single process where there is no MPI.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--num_processes", str(n), "--main_process_port", str(port)]
    return subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)},
    )


def run_alone(what, folder, dies_at=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    command = [sys.executable, TESTS / "process_worker.py", what, folder, str(dies_at)]
    run = subprocess.run(command, timeout=300, env=environment, capture_output=True, text=True)
    assert run.returncode == (-signal.SIGKILL if dies_at else 0), run.stderr


def test_without_a_launcher_there_is_one_process(tmp_path):
    assert join_processes() == ALONE
    assert ALONE.is_main
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    assert ALONE.from_main("x") == "x"
    with ALONE.own(tmp_path / "new") as folder:
        assert folder.is_dir()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_everything_once(count):
    shares = [Processes(index, count).share(torch.arange(5)) for index in range(count)]
    assert sorted(torch.cat(shares).tolist()) == [0, 1, 2, 3, 4]


def test_a_folder_belongs_to_one_run_at_a_time(tmp_path):
    with (
        own_folder(tmp_path),
        pytest.raises(FolderInUseError, match=str(tmp_path)),
        own_folder(tmp_path),
    ):
        pass
    with own_folder(tmp_path):
        pass


def shard_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_observing_is_shared_and_goes_on_after_a_process_was_killed(tmp_path):
    run_alone("observe", tmp_path / "one")
    worker = TESTS / "process_worker.py"
    killed = launch(worker, "observe", tmp_path / "two", 4)
    assert killed.returncode != 0
    finished = sorted(path.stem for path in (tmp_path / "two").glob("shard-*.json"))
    assert 0 < len(finished) < 7
    assert "shard-00001" in finished  # the killed process's first; its second it left undone
    assert "shard-00003" not in finished
    again = launch(worker, "observe", tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert shard_files(tmp_path / "two") == shard_files(tmp_path / "one")


def test_training_is_shared_and_goes_on_after_a_process_was_killed(tmp_path):
    run_alone("train", tmp_path / "one")
    worker = TESTS / "process_worker.py"
    killed = launch(worker, "train", tmp_path / "two", 100)
    assert killed.returncode != 0
    again = launch(worker, "train", tmp_path / "two")
    assert again.returncode == 0, again.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-3)
    one, two = (
        json.loads((tmp_path / name / "history.json").read_text()) for name in ("one", "two")
    )
    assert two["mean_patch_mse"] == pytest.approx(one["mean_patch_mse"], rel=1e-6)
    for before, after in zip(one["history"], two["history"], strict=True):
        assert after["patterns"] == before["patterns"]
        assert after["learning_rate"] == pytest.approx(before["learning_rate"])
        assert after["validation_mse"] == pytest.approx(before["validation_mse"], rel=1e-3)
        if before["loss"] is not None:
            assert after["loss"] == pytest.approx(before["loss"], rel=1e-3)


def test_a_sweep_that_was_killed_goes_on(tmp_path):
    run_alone("sweep", tmp_path / "one")
    run_alone("sweep", tmp_path / "two", dies_at=60)
    unfinished = json.loads((tmp_path / "two" / "unfinished" / "outcomes.json").read_text())
    assert {len(bits) for bits in unfinished["value"].values()} == {8}  # two batches of four
    run_alone("sweep", tmp_path / "two")
    assert shard_files(tmp_path / "two") == shard_files(tmp_path / "one")


def test_ranking_that_was_killed_goes_on(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    run_alone("rank", tmp_path / "one")
    run_alone("rank", tmp_path / "two", dies_at=5)
    kept = list((tmp_path / "two" / "predictions").glob("*-fold-*.json"))
    assert 0 < len(kept) < 9  # of three feature sets on three folds
    run_alone("rank", tmp_path / "two")
    one, two = (pd.read_parquet(tmp_path / name / "table.parquet") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)


def test_a_study_in_two_processes_is_that_of_one(tmp_path, tiny_saved, java_zip):
    path = tmp_path / "small.toml"
    path.write_text(STUDY.format(model=tiny_saved, corpus=java_zip, kind="bridge"))
    options = ["--set", 'mae.training.precision="float32"', "--folder"]
    command = ["aplens", "run", path, "--until", "rank", *options]
    one = subprocess.run(
        [sys.executable, "-m", *map(str, command), str(tmp_path / "one")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert one.returncode == 0, one.stdout + one.stderr
    two = launch("-m", *command, tmp_path / "two")
    assert two.returncode == 0, two.stdout + two.stderr
    assert two.stdout.count("rank: the heads by effect") == 1  # the first process alone speaks
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "scenarios.parquet").read_bytes() == (two / "scenarios.parquet").read_bytes()
    first, second = (Observations.open(folder / "observations") for folder in (one, two))
    exact = ["scenario", "file", "target", "predicted", "correct"]
    pd.testing.assert_frame_equal(first.table[exact], second.table[exact])
    np.testing.assert_allclose(second.embeddings, first.embeddings, atol=0.05)
    again = subprocess.run(  # what two processes did, one goes on from
        [sys.executable, "-m", *map(str, command), str(two)], capture_output=True, text=True
    )
    assert again.returncode == 0
    assert "rank: done before" in again.stdout


def test_a_second_run_of_a_study_is_refused(tmp_path, tiny_saved, java_zip):
    path = tmp_path / "small.toml"
    path.write_text(STUDY.format(model=tiny_saved, corpus=java_zip, kind="bridge"))
    command = [sys.executable, "-m", "aplens", "run", str(path), "--until", "mine"]
    command += ["--folder", str(tmp_path / "out")]
    with own_folder(tmp_path / "out"):
        refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 1
    assert f"another run is working in {tmp_path / 'out'}" in refused.stdout.replace("\n", "")
