"""Observing: what is written, that interrupts and damage cost a shard, that runs never mix."""

from __future__ import annotations

import errno
import json
import math
from contextlib import contextmanager
from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import KINDS, make_any_tiny, make_broken, train_on
from correctness_helpers import make_mae, make_observations, make_scenarios

from aplens import _store
from aplens._io import FolderInUseError, own_folder
from aplens.correctness import Keep, Observations, observe, pattern_statistics
from aplens.correctness.observations import COLUMNS, HEAD_NUMBERS
from aplens.patterns import collect_patterns
from aplens.scenarios import Scenarios


@pytest.fixture(scope="module")
def mae():
    return make_mae()


def ragged_scenarios(model):
    from aplens.scenarios import make_scenarios

    prompts = [[5, 9, 2, 7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [42] * 7, [11, 12]]
    return make_scenarios(model, prompts, [1, 2, 3, 4], [5, 6, 7, 8])


class Interrupted(Exception):
    pass


def stop_after(n_done):
    def progress(done, total):
        if done >= n_done:
            raise Interrupted

    return progress


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_prompts_of_several_lengths_are_observed_as_each_is_alone(tiny_model, mae, tmp_path):
    scenarios = ragged_scenarios(tiny_model)
    together = observe(tiny_model, scenarios, mae, tmp_path / "all", batch_size=3)
    for index in range(len(scenarios)):
        alone = observe(tiny_model, scenarios[index : index + 1], mae, tmp_path / str(index))
        np.testing.assert_allclose(together.embeddings[index], alone.embeddings[0], atol=5e-3)
        np.testing.assert_allclose(
            together.numbers("statistics")[index], alone.numbers("statistics")[0], atol=1e-4
        )
        with torch.no_grad():
            logits = tiny_model(torch.tensor([scenarios[index].prompt]))[0, -1]
        row = together.table.iloc[index]
        assert row["predicted"] == logits.argmax()
        expected = logits[scenarios[index].target] - logits[scenarios[index].wrong]
        assert row["logit_difference"] == pytest.approx(expected.item(), abs=1e-4)


def test_observations_are_what_the_model_and_the_mae_say(tiny_model, mae, tmp_path):
    scenarios = make_scenarios(7)
    observations = observe(tiny_model, scenarios, mae, tmp_path, batch_size=2, shard_size=3)

    patterns = collect_patterns(tiny_model, scenarios.tokens())
    assert observations.heads == patterns.heads
    assert observations.embeddings.dtype == np.float16
    expected = mae.encode(patterns).numpy()
    np.testing.assert_allclose(observations.embeddings, expected, atol=5e-3)
    np.testing.assert_allclose(
        observations.numbers("statistics"), pattern_statistics(patterns.values), atol=1e-5
    )
    with torch.no_grad():
        log_probabilities = tiny_model(scenarios.tokens())[:, -1].log_softmax(-1)
    table = observations.table
    assert list(table.columns) == list(COLUMNS)
    assert list(table["scenario"]) == list(range(7))
    assert list(table["predicted"]) == log_probabilities.argmax(-1).tolist()
    assert list(table["file"]) == scenarios.files
    assert list(table["line"]) == [scenario.line for scenario in scenarios]
    probabilities = log_probabilities.exp()
    np.testing.assert_allclose(table["top_probability"], probabilities.max(-1).values, rtol=1e-4)
    np.testing.assert_allclose(
        table["entropy"], -(probabilities * log_probabilities).sum(-1), rtol=1e-4
    )
    np.testing.assert_allclose(
        table["target_log_probability"],
        log_probabilities[torch.arange(7), scenarios.targets()],
        rtol=1e-4,
    )


def test_correct_means_that_the_argmax_is_the_target(any_model, mae, tmp_path):
    scenarios = make_scenarios(6)
    with torch.no_grad():
        predicted = any_model(scenarios.tokens())[:, -1].argmax(-1).tolist()
    targets = [token if i % 2 else token + 1 for i, token in enumerate(predicted)]
    scenarios = Scenarios(replace(s, target=t) for s, t in zip(scenarios, targets, strict=True))
    observations = observe(any_model, scenarios, mae, tmp_path)
    assert list(observations.table["correct"]) == [False, True] * 3


def test_no_folder_leaves_no_files(any_model, mae, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    observations = observe(any_model, make_scenarios(5), mae)
    assert list(tmp_path.iterdir()) == []
    assert observations.embeddings.shape[:2] == (5, 12)


def test_without_a_folder_the_same_is_in_memory(any_model, mae, tmp_path):
    scenarios = make_scenarios(6)
    options = {"batch_size": 4, "shard_size": 4, "keep": get_args(Keep)}
    kept = observe(any_model, scenarios, mae, tmp_path, **options)
    held = observe(any_model, scenarios, mae, **options)
    for row in (slice(None), [4, 1]):
        some, others = (each.select(np.arange(6)[row]) for each in (held, kept))
        assert some.table.equals(others.table)
        assert np.array_equal(some.embeddings, others.embeddings)
        for name in HEAD_NUMBERS:
            assert np.array_equal(some.numbers(name), others.numbers(name))
    assert repr(held) == repr(kept)
    assert held.mae == kept.mae


def test_progress_counts_scenarios(any_model, mae, tmp_path):
    def run():
        seen = []
        observe(
            any_model,
            make_scenarios(7),
            mae,
            tmp_path,
            batch_size=2,
            shard_size=3,
            progress=lambda done, total: seen.append((done, total)),
        )
        return seen

    assert run() == [(done, 7) for done in (2, 3, 5, 6, 7)]
    assert run() == [(done, 7) for done in (3, 6, 7)]  # found done, shard by shard


def test_resuming_equals_an_uninterrupted_run(any_model, mae, tmp_path):
    scenarios = make_scenarios(10)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    observe(any_model, scenarios, mae, whole, batch_size=2, shard_size=4)
    with pytest.raises(Interrupted):
        observe(
            any_model,
            scenarios,
            mae,
            resumed,
            batch_size=2,
            shard_size=4,
            progress=stop_after(10),
        )
    with pytest.raises(
        ValueError, match="unfinished: 1 of 3 shards are missing, first shard-00002"
    ):
        Observations.open(resumed)
    first = (resumed / "shard-00000.safetensors").stat().st_mtime_ns
    observe(any_model, scenarios, mae, resumed, batch_size=2, shard_size=4)
    assert (resumed / "shard-00000.safetensors").stat().st_mtime_ns == first  # not done again
    assert files_of(resumed) == files_of(whole)


def test_a_model_that_was_trained_on_is_another_model(mae, tmp_path):
    model, scenarios = make_any_tiny(), make_scenarios(6)
    observe(model, scenarios, mae, tmp_path)
    train_on(model)
    with pytest.raises(ValueError, match=r"something else \(model_weights was [^;]*\):"):
        observe(model, scenarios, mae, tmp_path)


@pytest.mark.parametrize("suffix", ["safetensors", "parquet", "json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_shard_is_named_and_done_again(any_model, mae, tmp_path, suffix, damage):
    scenarios = make_scenarios(6)
    observe(any_model, scenarios, mae, tmp_path, shard_size=3)
    before = files_of(tmp_path)
    path = tmp_path / f"shard-00001.{suffix}"
    content = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-5])
    else:
        place = len(content) // 2
        flipped = bytes([content[place] ^ 1])
        path.write_bytes(content[:place] + flipped + content[place + 1 :])

    if suffix == "json" and damage == "delete":  # nothing says that the shard was ever finished
        with pytest.raises(ValueError, match="1 of 2 shards are missing, first shard-00001"):
            Observations.open(tmp_path)
        observe(any_model, scenarios, mae, tmp_path, shard_size=3)
    else:
        with pytest.raises(ValueError, match=path.name):
            Observations.open(tmp_path)
        with pytest.warns(UserWarning, match=f"{path.name} is .*shard-00001 is done again"):
            observe(any_model, scenarios, mae, tmp_path, shard_size=3)
    assert files_of(tmp_path) == before


def test_a_folder_never_mixes_two_runs(any_model, other_model, mae, tmp_path):
    scenarios = make_scenarios(4)
    observe(any_model, scenarios, mae, tmp_path)
    before = files_of(tmp_path)
    for model, prompts, encoder, settings, difference in [
        (other_model, scenarios, mae, {}, "model_name was .*, is 'tiny-other'"),
        (any_model, make_scenarios(4, seed=1), mae, {}, "scenarios was"),
        (any_model, make_scenarios(5), mae, {}, "n_scenarios was 4, is 5"),
        (any_model, scenarios, make_mae(seed=1), {}, "mae was"),
        (any_model, scenarios, make_mae(mask_ratio=0.4), {}, "mae was"),
        (any_model, scenarios, mae, {"shard_size": 2}, "shard_size was 64, is 2"),
        (
            any_model,
            scenarios,
            mae,
            {"keep": []},
            r"numbers was \['statistics', 'regions'\], is \[\]",
        ),
        (any_model, scenarios, mae, {"precision": torch.bfloat16}, "precision was None, is 'torch"),
    ]:
        with pytest.raises(ValueError, match=difference):
            observe(model, prompts, encoder, tmp_path, **settings)
    assert files_of(tmp_path) == before


def test_without_statistics(any_model, mae, tmp_path):
    observations = observe(any_model, make_scenarios(3), mae, tmp_path, keep=())
    assert observations.embeddings.shape[:2] == (3, 12)
    with pytest.raises(ValueError, match="'statistics' in keep"):
        _ = observations.numbers("statistics")


def test_an_embedding_too_large_for_float16_is_an_error(any_model, tmp_path):
    mae = make_mae()
    with torch.no_grad():
        for parameter in mae.encoder.parameters():
            parameter.mul_(1e6)
    with pytest.raises(ValueError, match=r"L0H0 does not fit float16"):
        observe(any_model, make_scenarios(3), mae, tmp_path)


def test_prompts_too_long_for_the_mae_are_refused(any_model, mae, tmp_path):
    with pytest.raises(ValueError, match="40 tokens"):
        observe(any_model, make_scenarios(3, n_tokens=40), mae, tmp_path)


@pytest.mark.parametrize("name", ["batch_size", "shard_size"])
def test_sizes_must_be_positive(any_model, mae, tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"):
        observe(any_model, make_scenarios(3), mae, tmp_path, **{name: 0})


@pytest.mark.parametrize("keep", ["surprise", ["statistics", "mood"]])
def test_what_cannot_be_kept_is_refused_by_name(any_model, mae, keep):
    with pytest.raises(ValueError, match=r"list of some of \['statistics', 'surprise'\], got"):
        observe(any_model, make_scenarios(3), mae, keep=keep)


def test_bfloat16_comes_close(any_model, mae, tmp_path):
    scenarios = make_scenarios(5)
    exact = observe(any_model, scenarios, mae, tmp_path / "a")
    rounded = observe(any_model, scenarios, mae, tmp_path / "b", precision=torch.bfloat16)
    difference = np.asarray(rounded.embeddings, float) - np.asarray(exact.embeddings, float)
    assert 0 < np.abs(difference).max() < 0.2
    with pytest.raises(ValueError, match=r"None or torch\.bfloat16, got torch\.float16"):
        observe(any_model, scenarios, mae, tmp_path / "c", precision=torch.float16)


def test_a_second_run_in_the_same_folder_is_refused(any_model, mae, tmp_path):
    with own_folder(tmp_path), pytest.raises(FolderInUseError, match="another run is working in"):
        observe(any_model, make_scenarios(3), mae, tmp_path)
    observe(any_model, make_scenarios(3), mae, tmp_path)


def test_what_a_killed_run_left_half_written_is_cleared_away(any_model, mae, tmp_path):
    abandoned = tmp_path / ".partial-shard-00000.safetensors.abc"
    abandoned.write_bytes(b"half")
    observe(any_model, make_scenarios(3), mae, tmp_path)
    assert not abandoned.exists()


def test_a_full_disk_keeps_the_shards_that_were_finished(any_model, mae, tmp_path, monkeypatch):
    scenarios = make_scenarios(9)
    whole = observe(any_model, scenarios, mae, tmp_path / "whole", shard_size=3)
    real, written = _store.atomic_write, []

    @contextmanager
    def full_disk(path):
        if len(written) >= 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        written.append(path)
        with real(path) as temporary:
            yield temporary

    monkeypatch.setattr(_store, "atomic_write", full_disk)
    with pytest.raises(OSError, match="No space left"):
        observe(any_model, scenarios, mae, tmp_path / "full", shard_size=3)
    monkeypatch.undo()
    resumed = observe(any_model, scenarios, mae, tmp_path / "full", shard_size=3)
    np.testing.assert_array_equal(resumed.embeddings, whole.embeddings)
    assert files_of(tmp_path / "full") == files_of(tmp_path / "whole")


def test_opening_what_is_no_observations(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is missing"):
        Observations.open(tmp_path)
    for content, words in [
        ({"format": "something else"}, "is not observations saved by aplens"),
        (
            {"format": "aplens.observations", "version": 2, "run": {}},
            "of version 2; this",
        ),
        ({"format": "aplens.observations", "version": 3, "setup": {}, "checksum": "0"}, "damaged"),
    ]:
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"manifest\.json .*{words}.*delete"):
            Observations.open(tmp_path)


def test_arrays_are_read_only_when_asked_for(any_model, mae, tmp_path):
    observations = observe(any_model, make_scenarios(6), mae, tmp_path, shard_size=3)
    chosen = observations.select([5, 0])
    for path in tmp_path.glob("*.safetensors"):
        path.rename(path.with_suffix(".moved"))
    assert len(chosen) == 2
    with pytest.raises(FileNotFoundError):
        np.asarray(chosen.embeddings)


def test_select_takes_positions_and_masks():
    observations = make_observations(n=12)
    by_position = observations.select([7, 2])
    assert list(by_position.table["scenario"]) == [7, 2]
    np.testing.assert_array_equal(by_position.embeddings, observations.embeddings[[7, 2]])
    np.testing.assert_array_equal(
        by_position.numbers("statistics"), observations.numbers("statistics")[[7, 2]]
    )
    assert by_position.files == [observations.files[7], observations.files[2]]
    mask = observations.table["correct"].to_numpy()
    by_mask = observations.select(mask)
    assert len(by_mask) == mask.sum()
    assert by_mask.table["correct"].all()
    assert list(by_mask.select([0]).table["scenario"]) == [mask.argmax()]
    for nothing in ([], np.zeros(12, dtype=bool)):
        none = observations.select(nothing)
        assert len(none) == 0
        assert none.embeddings.shape == (0, 6, 12)


def test_loaded_observations_outlive_their_folder(any_model, mae, tmp_path):
    observations = observe(any_model, make_scenarios(3), mae, tmp_path).load()
    for path in tmp_path.iterdir():
        path.unlink()
    assert observations.embeddings.shape == (3, 12, 32)
    assert math.isfinite(observations.numbers("statistics").sum())


def test_what_does_not_fit_together_is_refused():
    good = make_observations(n=6)
    facts = {"model": good.model}
    with pytest.raises(ValueError, match=r"missing \['correct'\]"):
        Observations(good.table.drop(columns="correct"), good.heads, good.embeddings, **facts)
    with pytest.raises(ValueError, match=r"expected embeddings .* = \(6, 6\)"):
        Observations(good.table, good.heads, good.embeddings[:5], **facts)
    few = {"statistics": good.numbers("statistics")[:, :2]}
    with pytest.raises(ValueError, match=r"numbers must be some of .*, got \['mood'\]"):
        Observations(
            good.table, good.heads, good.embeddings, {"mood": good.numbers("statistics")}, **facts
        )
    with pytest.raises(ValueError, match="expected statistics"):
        Observations(good.table, good.heads, good.embeddings, few, **facts)


def test_a_table_is_plain_parquet(any_model, mae, tmp_path):
    observe(any_model, make_scenarios(3), mae, tmp_path)
    table = pd.read_parquet(tmp_path / "shard-00000.parquet")
    assert table["correct"].dtype == bool
    assert table["file"].tolist() == ["a/File0.java", "a/File0.java", "a/File1.java"]


def test_numbers_that_were_not_kept_are_named(any_model, mae, tmp_path):
    observe(any_model, make_scenarios(5), mae, tmp_path, keep=())
    opened = Observations.open(tmp_path)
    for name in ("regions", "surprise"):
        with pytest.raises(ValueError, match=f"have no {name}: observe with"):
            opened.numbers(name)
    with pytest.raises(ValueError, match=r"numbers must be some of .*, got 'mood'"):
        opened.numbers("mood")


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_with_broken_weights_is_not_observed(kind, mae, tmp_path):
    with pytest.raises(ValueError, match=r"attention of L1H2 of .* is broken"):
        observe(make_broken(kind), make_scenarios(4), mae, tmp_path)


@pytest.mark.parametrize("field", ["target", "wrong"])
def test_answers_that_are_no_tokens_of_the_model_are_refused_before_a_folder_is_made(
    any_model, mae, tmp_path, field
):
    scenarios = list(ragged_scenarios(any_model))
    scenarios[1] = replace(scenarios[1], **{field: 101})
    with pytest.raises(ValueError, match=r"scenario 1 \(prompt-1\): .* token id from 0 to 100"):
        observe(any_model, Scenarios(scenarios), mae, tmp_path / "observations")
    assert not (tmp_path / "observations").exists()


def test_logits_that_are_nan_are_not_wrong_predictions(any_model, mae, tmp_path):
    def spoil(module, inputs, logits):
        return logits * torch.nan

    with (
        any_model.unembed.register_forward_hook(spoil),
        pytest.raises(ValueError, match="logits contain NaN"),
    ):
        observe(any_model, make_scenarios(4), mae, tmp_path)
