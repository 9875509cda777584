from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
import torch
from conftest import make_any_tiny, train_on
from mae_helpers import tiny_config
from safetensors import SafetensorError

from aplens.mae import APMAE, CheckpointError, TrainingError, TrainingSettings, train_apmae
from aplens.mae.rounds import PatternRounds
from aplens.patterns import PatchGrid, collect_patterns, log_normalize
from aplens.scenarios import Scenario, Scenarios

CONFIG = tiny_config(n_ctx=32, patch_size=8, base="additive", patch_input="centred")

# 3 layers × 4 heads × 2 prompts = 24 patterns a round, in 3 batches; 9 steps in all.
SETTINGS = TrainingSettings(
    patterns=72,
    batch_size=8,
    learning_rate=1e-2,
    prompts_per_round=2,
    validation_prompts=2,
    validation_patterns=12,
    validations=3,
    checkpoint_seconds=1000,
    precision="float32",
)


def prompts(n, seed, n_tokens=32):
    return torch.randint(0, 101, (n, n_tokens), generator=torch.Generator().manual_seed(seed))


def train(
    model,
    folder,
    *,
    config=CONFIG,
    progress=None,
    tokens=None,
    held_out=None,
    start=None,
    **changes,
):
    return train_apmae(
        model,
        prompts(5, seed=1) if tokens is None else tokens,
        config,
        folder,
        validation=prompts(3, seed=2) if held_out is None else held_out,
        start=start,
        settings=dataclasses.replace(SETTINGS, **changes),
        progress=progress,
    )


def same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


# -- what a run does


def test_a_run_on_either_model_class(tiny_model, tmp_path):
    seen = []
    result = train(tiny_model, tmp_path, progress=lambda *now: seen.append(now))

    assert result.patterns == 72
    assert seen == [(done, 72) for done in range(0, 73, 8)]

    assert [entry["patterns"] for entry in result.history] == [0, 24, 48, 72]
    assert result.history[0]["loss"] is None
    assert all(math.isfinite(entry["loss"]) for entry in result.history[1:])
    assert result.history[-1]["validation_mse"] == result.validation_mse
    assert result.validation_ratio == result.validation_mse / result.mean_patch_mse
    stored = json.loads((tmp_path / "history.json").read_text())
    assert stored["history"] == result.history
    assert stored["additive_mse"] == result.additive_mse
    assert same_weights(APMAE.from_pretrained(tmp_path), result.mae)


def test_training_from_the_additive_fit_starts_there(tiny_bridge, tmp_path):
    result = train(tiny_bridge, tmp_path)
    assert result.history[0]["validation_ratio"] == pytest.approx(result.additive_ratio, rel=1e-4)


@pytest.mark.parametrize(("share", "expected"), [(0.0, {10}), (1.0, {3, 6, 10})])
def test_cropped_batches_are_of_all_lengths(tiny_bridge, tmp_path, share, expected):
    seen = set()
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, args: seen.add(args[0].shape[1]) if isinstance(module, APMAE) else None
    )
    with hook:
        train(tiny_bridge, tmp_path, crop_share=share, patterns=600, validations=1)
    assert seen == expected  # 2, 3 or 4 rows of patches


@pytest.mark.parametrize("base", ["none", "additive", "low_rank"])
def test_training_lowers_the_error_on_held_out_prompts(tiny_bridge, tmp_path, base):
    config = dataclasses.replace(CONFIG, base=base)
    settings = {"patterns": 2400, "prompts_per_round": 20, "heads_fraction": 1.0, "batch_size": 24}
    tokens, held_out = prompts(40, seed=1), prompts(4, seed=2)
    result = train(
        tiny_bridge, tmp_path, config=config, tokens=tokens, held_out=held_out, **settings
    )
    start = result.history[0]["validation_ratio"]
    assert result.validation_ratio < (0.1 if base == "none" else 0.995) * start


def test_the_mean_pattern_is_of_the_first_round(any_model, tmp_path):
    result = train(any_model, tmp_path, prompts_per_round=5)
    grid = PatchGrid(32, 8)
    patterns = collect_patterns(any_model, prompts(5, seed=1)).values.flatten(0, 1)
    expected = log_normalize(grid.patchify(patterns)).mean(0)
    assert torch.allclose(result.mae.mean_patches, expected, atol=1e-3)


def test_shorter_prompts_than_the_context(any_model, tmp_path):
    short = {"tokens": prompts(5, 1, n_tokens=20), "held_out": prompts(3, 2, 20)}
    with pytest.warns(UserWarning, match="20 tokens, n_ctx is 32: .* nothing of longer ones"):
        result = train(any_model, tmp_path, **short)
    assert math.isfinite(result.validation_ratio)
    assert not result.mae.mean_patches[6:].any()  # patches beyond 20 tokens


@pytest.mark.filterwarnings("error::UserWarning")
def test_of_longer_prompts_the_means_of_the_start_stay(any_model, tmp_path):
    start = train(any_model, tmp_path / "start").mae
    short = {"tokens": prompts(5, 6, n_tokens=20), "held_out": prompts(3, 2, 20)}
    mae = train(any_model, tmp_path / "on", start=tmp_path / "start", **short).mae
    longer = torch.ones(32, 32)
    longer[:20] = 0
    longer = mae.grid.patchify(longer)
    assert torch.equal(mae.mean_pattern(32) * longer, start.mean_pattern(32) * longer)
    with pytest.warns(UserWarning, match="nothing of longer ones"):
        alone = train(any_model, tmp_path / "alone", **short).mae
    for n_tokens in (20, 13):  # what these prompts hold, on whatever scale it is kept
        expected = alone.mean_pattern(n_tokens)
        torch.testing.assert_close(mae.mean_pattern(n_tokens), expected, atol=1e-6, rtol=1e-6)


def test_the_schedule():
    settings = TrainingSettings(batch_size=100, warmup=0.1)
    assert settings.peak_learning_rate == pytest.approx(3e-4)  # 1.5e-4 × batch / 50
    rates = [settings.learning_rate_at(fraction) for fraction in (0, 0.05, 0.1, 0.55, 1)]
    assert rates == pytest.approx([0, 1.5e-4, 3e-4, 1.5e-4, 0])
    assert TrainingSettings(learning_rate=1e-3, warmup=0).learning_rate_at(0) == 1e-3


def test_time_can_end_a_run_and_the_schedule_with_it(any_model, tmp_path):
    seen = []
    told = {"progress": lambda *now: seen.append(now)}
    result = train(any_model, tmp_path, patterns=10**9, max_seconds=1.0, **told)
    assert 0 < result.patterns < 10**9
    assert seen[-1] == (result.patterns, result.patterns)
    assert 1.0 <= result.seconds < 20
    assert result.history[-1]["learning_rate"] == pytest.approx(0, abs=1e-12)


# -- rounds


def rounds(model, n_prompts=5, **changes):
    settings = TrainingSettings(**{"prompts_per_round": 2} | changes)
    return PatternRounds([(model, prompts(n_prompts, seed=1))], PatchGrid(32, 8), settings)


def test_a_round_depends_on_the_seed_and_its_number_alone(any_model):
    first = rounds(any_model)
    later = first.patches(3)
    assert later.shape == (2 * 12, 10, 64)
    assert torch.equal(rounds(any_model).patches(3), later)
    assert not torch.equal(first.patches(2), later)
    assert not torch.equal(rounds(any_model, seed=1).patches(3), later)


def test_every_prompt_is_used_before_any_is_used_again(any_model):
    drawn = [int(i) for number in range(5) for i in rounds(any_model)._prompts(number)]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [0, 1, 2, 3, 4]
    assert drawn[:5] != drawn[5:]


def test_a_share_of_every_layers_heads(any_model):
    source = rounds(any_model, heads_fraction=0.25)
    chosen = [source._heads(number) for number in range(20)]
    assert all([head.layer for head in heads] == [0, 1, 2] for heads in chosen)
    assert {head.head for heads in chosen for head in heads} == {0, 1, 2, 3}
    assert source.patches(0).shape[0] == 2 * 3


# -- interrupting and going on


class Interrupt(Exception):
    pass


def stop_after(patterns):
    def progress(done, total):
        if done >= patterns:
            raise Interrupt

    return progress


@pytest.fixture(scope="module")
def uninterrupted(any_model, tmp_path_factory):
    return train(any_model, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize(
    ("patterns", "checkpoint_seconds"),
    [(0, 0), (8, 0), (24, 0), (40, 0), (72, 0), (8, 1000), (72, 1000)],
)
def test_an_interrupted_run_ends_with_the_same_weights(
    any_model, tmp_path, uninterrupted, patterns, checkpoint_seconds
):
    with pytest.raises(Interrupt):
        train(
            any_model,
            tmp_path,
            progress=stop_after(patterns),
            checkpoint_seconds=checkpoint_seconds,
        )
    resumed_at = []
    result = train(any_model, tmp_path, progress=lambda done, _: resumed_at.append(done))
    assert resumed_at[0] == (patterns if checkpoint_seconds == 0 else 0)
    assert same_weights(result.mae, uninterrupted.mae)
    assert [entry["validation_mse"] for entry in result.history] == [
        entry["validation_mse"] for entry in uninterrupted.history
    ]


def test_two_runs_agree_and_another_seed_does_not(any_model, tmp_path, uninterrupted):
    assert same_weights(train(any_model, tmp_path / "a").mae, uninterrupted.mae)
    assert not same_weights(train(any_model, tmp_path / "b", seed=1).mae, uninterrupted.mae)


def test_a_fingerprint_is_fitted_at_the_end(any_model, tmp_path, uninterrupted):
    config = dataclasses.replace(CONFIG, fingerprint_dim=6)
    mae = train(any_model, tmp_path, config=config).mae
    assert mae.has_fingerprint
    own = {k: v for k, v in mae.state_dict().items() if not k.startswith("to_fingerprint")}
    expected = uninterrupted.mae.state_dict()
    assert all(torch.equal(own[name], expected[name]) for name in expected | own)
    assert same_weights(train(any_model, tmp_path, config=config).mae, mae)


def test_a_finished_run_is_loaded_without_running_the_model(any_model, tmp_path, monkeypatch):
    finished = train(any_model, tmp_path)
    written = {path: path.stat().st_ino for path in tmp_path.iterdir()}
    monkeypatch.setattr("aplens.mae.rounds.read_layers", None)
    again = train(any_model, tmp_path)
    assert same_weights(again.mae, finished.mae)
    assert again.history == finished.history
    assert {path: path.stat().st_ino for path in tmp_path.iterdir()} == written  # as they were


@pytest.fixture(scope="module")
def interrupted(any_model, tmp_path_factory):
    """A folder with a checkpoint of a run that has not learned anything yet."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Interrupt):
        train(any_model, folder, progress=stop_after(0))
    return folder


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"learning_rate": 2e-2}, "settings.learning_rate was 0.01, is 0.02"),
        ({"patterns": 96}, "settings.patterns was 72, is 96"),
        ({"seed": 5}, "settings.seed was 0, is 5"),
        ({"config": dataclasses.replace(CONFIG, encoder_depth=1)}, "config.encoder_depth was 2"),
        ({"tokens": prompts(5, seed=3)}, r"models\.0\.prompts was "),
        ({"held_out": prompts(3, seed=4)}, "validation was "),
    ],
)
def test_another_run_is_not_gone_on_from(any_model, interrupted, changes, difference):
    with pytest.raises(CheckpointError, match=difference) as error:
        train(any_model, interrupted, **changes)
    assert str(error.value).count(" was ") == 1  # nothing else differs


def test_another_model_is_not_gone_on_with(other_model, interrupted):
    with pytest.raises(CheckpointError, match=r"models\.0\.name was .*, is 'tiny-other'"):
        train(other_model, interrupted)


def test_a_model_that_was_trained_on_is_not_gone_on_with(tmp_path):
    model = make_any_tiny()
    with pytest.raises(Interrupt):
        train(model, tmp_path, progress=stop_after(0))
    train_on(model)
    with pytest.raises(CheckpointError, match=r"models\.0\.weights was") as error:
        train(model, tmp_path)
    assert str(error.value).count(" was ") == 1


def test_a_damaged_checkpoint_is_refused(any_model, interrupted, tmp_path):
    shutil.copytree(interrupted, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match=r"training\.safetensors is damaged"):
        train(any_model, tmp_path)


def test_divergence_is_an_error_and_keeps_the_last_checkpoint(any_model, tmp_path):
    with pytest.raises(TrainingError, match=r"loss nan.*smaller\s+learning rate"):
        train(any_model, tmp_path, learning_rate=1e30, warmup=0.0)
    kept = APMAE.from_pretrained(tmp_path)
    assert all(parameter.isfinite().all() for parameter in kept.parameters())


# -- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": prompts(5, 1, n_tokens=33)}, "prompts: .* at most n_ctx = 32, got 33"),
        ({"tokens": prompts(5, 1, n_tokens=8)}, r"longer than a patch \(8 tokens\)"),
        ({"tokens": prompts(5, 1)[:0]}, r"prompts: .* not empty, got \(0, 32\)"),
        ({"held_out": prompts(3, 2)[0]}, r"validation: expected tokens"),
        ({"held_out": prompts(5, 1)[2:4]}, "2 of 2 validation prompts are training prompts"),
    ],
)
def test_unusable_prompts_are_refused_before_anything_is_written(
    any_model, tmp_path, changes, message
):
    with pytest.raises(ValueError, match=message):
        train(any_model, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def scenarios(files, seed):
    return Scenarios(
        Scenario("random", "java", file, 1, "x", tuple(prompt.tolist()), 0, "left_to_right")
        for file, prompt in zip(files, prompts(len(files), seed), strict=True)
    )


def test_scenarios_train_as_their_prompts_do(any_model, tmp_path, uninterrupted):
    result = train(any_model, tmp_path, tokens=scenarios("abcde", 1), held_out=scenarios("xyz", 2))
    assert same_weights(result.mae, uninterrupted.mae)


def test_files_on_both_sides_are_refused(any_model, tmp_path):
    with pytest.raises(ValueError, match=r"1 source files .* such as b"):
        train(any_model, tmp_path, tokens=scenarios("abcde", 1), held_out=scenarios("xbz", 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patterns": 0}, "patterns must be 1 or more, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"max_seconds": 0.0}, "max_seconds must be positive"),
        ({"warmup": 1.0}, "warmup must be"),
        ({"heads_fraction": 0.0}, "heads_fraction must lie"),
        ({"weight_decay": -0.1}, "weight_decay must not be negative"),
        ({"precision": "float16"}, "precision must be one of"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**changes)
    with pytest.raises(ValueError, match=message):
        TrainingSettings.small(**changes)


def test_a_flipped_bit_in_a_checkpoint_is_noticed(any_model, tmp_path):
    with pytest.raises(Interrupt):
        train(any_model, tmp_path, progress=stop_after(24), checkpoint_seconds=0)
    file = tmp_path / "training.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"training\.safetensors is damaged"):
        train(any_model, tmp_path)


def test_a_full_disk_keeps_the_checkpoint_before(any_model, tmp_path, uninterrupted, monkeypatch):
    from aplens.mae import checkpoints

    real, saved = checkpoints.save_file, []

    def full_disk(tensors, path, metadata):
        saved.append(path)
        if len(saved) == 3:
            path.write_bytes(b"as much as there was room for")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path, metadata)

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: .*training\.safetensors"):
        train(any_model, tmp_path, checkpoint_seconds=0)
    monkeypatch.undo()
    assert not list(tmp_path.glob(".partial-*"))
    assert same_weights(train(any_model, tmp_path).mae, uninterrupted.mae)
