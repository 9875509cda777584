"""Runs that two processes share: the result is that of one process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from multiprocessing.connection import wait

import numpy as np
import pandas as pd
import process_worker
import pytest
import torch
from safetensors.torch import load_file
from study_fixtures import STUDY, aplens_command

from aplens._io import FolderInUseError, own_folder
from aplens._processes import ALONE, Processes, join_processes
from aplens.correctness import Observations
from aplens.mae import APMAE

# One process imports what all need, and the others begin as copies of it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "accelerate",
        "transformers.models.gpt2",
        "transformer_lens.model_bridge",
        "sklearn.linear_model",
        "aplens.mae.training",
        "aplens.correctness.evaluation",
    ]
)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def work_on(what, folder, n=1, dies_at=0):
    """Do a worker's job in `n` processes; their exit codes. Like a launcher, end all with one."""
    launched = {"WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    processes = [
        CONTEXT.Process(
            target=process_worker.work,
            args=(what, str(folder), dies_at),
            kwargs={**launched, "RANK": str(i), "LOCAL_RANK": str(i)} if n > 1 else {},
        )
        for i in range(n)
    ]
    for process in processes:
        process.start()
    running = list(processes)
    while running:
        ended = wait([process.sentinel for process in running], timeout=300)
        assert ended, "no process came to an end"
        running = [process for process in running if process.sentinel not in ended]
        if any(process.exitcode for process in processes):
            for process in running:
                process.terminate()
    return [process.exitcode for process in processes]


def launch(*command):
    """Run a module in two processes of one thread each, as a user does."""
    # Not --cpu, which starts a single process where there is no MPI.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--num_processes", "2", "--main_process_port", free_port()]
    return subprocess.run(
        [sys.executable, *launcher, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


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
    assert work_on("observe", tmp_path / "one") == [0]
    assert work_on("observe", tmp_path / "two", n=2, dies_at=4)[1] == -signal.SIGKILL
    finished = sorted(path.stem for path in (tmp_path / "two").glob("shard-*.json"))
    assert 0 < len(finished) < 7
    assert "shard-00001" in finished  # the killed process's first; its second it left undone
    assert "shard-00003" not in finished
    assert work_on("observe", tmp_path / "two", n=2) == [0, 0]
    assert shard_files(tmp_path / "two") == shard_files(tmp_path / "one")


def test_training_is_shared_and_goes_on_after_a_process_was_killed(tmp_path):
    assert work_on("train", tmp_path / "one") == [0]
    assert work_on("train", tmp_path / "two", n=2, dies_at=100)[1] == -signal.SIGKILL
    assert work_on("train", tmp_path / "two", n=2) == [0, 0]
    require_same_training(tmp_path)


def test_training_is_shared_by_more_processes_than_prompts(tmp_path):
    start = APMAE(replace(process_worker.CONFIG, fingerprint_dim=8))
    torch.nn.init.normal_(start.to_fingerprint.weight, generator=torch.Generator().manual_seed(0))
    start.save_pretrained(tmp_path / "start")
    assert work_on("train-few", tmp_path / "one") == [0]
    assert work_on("train-few", tmp_path / "two", n=2) == [0, 0]
    require_same_training(tmp_path)


def require_same_training(folder):
    """What one process trained in `one` and several in `two` is the same but for rounding."""
    one, two = (load_file(folder / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], atol=1e-4, rtol=1e-3)
    one, two = (json.loads((folder / name / "history.json").read_text()) for name in ("one", "two"))
    assert two["mean_patch_mse"] == pytest.approx(one["mean_patch_mse"], rel=1e-6)
    for before, after in zip(one["history"], two["history"], strict=True):
        assert after["patterns"] == before["patterns"]
        assert after["learning_rate"] == pytest.approx(before["learning_rate"])
        assert after["validation_mse"] == pytest.approx(before["validation_mse"], rel=1e-3)
        if before["loss"] is not None:
            assert after["loss"] == pytest.approx(before["loss"], rel=1e-3)


def test_a_sweep_that_was_killed_goes_on(tmp_path):
    assert work_on("sweep", tmp_path / "one") == [0]
    assert work_on("sweep", tmp_path / "two", dies_at=60) == [-signal.SIGKILL]
    ablated = json.loads((tmp_path / "two" / "ablated.json").read_text())
    assert {len(bits) for _, bits in ablated["value"]} == {8}  # two batches of four
    assert work_on("sweep", tmp_path / "two") == [0]
    assert shard_files(tmp_path / "two") == shard_files(tmp_path / "one")


def test_ranking_that_was_killed_goes_on(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert work_on("rank", tmp_path / "one") == [0]
    assert work_on("rank", tmp_path / "two", dies_at=5) == [-signal.SIGKILL]
    kept = list((tmp_path / "two" / "predictions").glob("*-fold-*.json"))
    assert 0 < len(kept) < 9  # of three feature sets on three folds
    assert work_on("rank", tmp_path / "two") == [0]
    one, two = (pd.read_parquet(tmp_path / name / "table.parquet") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)


def test_a_study_in_two_processes_is_that_of_one(tmp_path, tiny_saved, java_zip):
    path = tmp_path / "small.toml"
    path.write_text(STUDY.format(model=tiny_saved, corpus=java_zip, kind="bridge"))
    options = ["--set", 'mae.training.precision="float32"', "--folder"]
    command = ["run", path, "--until", "rank", *options]
    one = aplens_command(*command, tmp_path / "one")
    assert one.exit_code == 0, one.output
    two = launch("-m", "aplens", *command, tmp_path / "two")
    assert two.returncode == 0, two.stdout + two.stderr
    assert two.stdout.count("rank: the heads by effect") == 1  # the first process alone speaks
    one, two = tmp_path / "one", tmp_path / "two"
    assert (one / "scenarios.parquet").read_bytes() == (two / "scenarios.parquet").read_bytes()
    first, second = (Observations.open(folder / "observations") for folder in (one, two))
    exact = ["scenario", "file", "target", "predicted", "correct"]
    pd.testing.assert_frame_equal(first.table[exact], second.table[exact])
    np.testing.assert_allclose(second.embeddings, first.embeddings, atol=0.05)
    again = aplens_command(*command, two)  # what two processes did, one goes on from
    assert again.exit_code == 0
    assert "rank: done before" in again.stdout


def test_a_second_run_of_a_study_is_refused(tmp_path, tiny_saved, java_zip):
    path = tmp_path / "small.toml"
    path.write_text(STUDY.format(model=tiny_saved, corpus=java_zip, kind="bridge"))
    with own_folder(tmp_path / "out"):
        refused = aplens_command("run", path, "--until", "mine", "--folder", tmp_path / "out")
    assert refused.exit_code == 1
    assert f"another run is working in {tmp_path / 'out'}" in refused.stdout.replace("\n", "")
