"""Reconstruction errors: what they are of, how they are summed up, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from correctness_helpers import make_mae, make_scenarios

from aplens.mae import additive_fit, random_masks, seeded
from aplens.models import describe_model
from aplens.scenarios import Scenarios
from paper.evaluation.prompts import sample_prompts, stream_prompts
from paper.evaluation.reconstruction import BASELINES, ReconstructionErrors, ReferencePatterns


def in_files(scenarios, prefix, languages=("java", "python")):
    """The same scenarios in files of their own, every second file in another language."""
    return Scenarios(
        dataclasses.replace(s, file=f"{prefix}/{s.file}", language=languages[i // 2 % 2])
        for i, s in enumerate(scenarios)
    )


REFERENCE = in_files(make_scenarios(6, seed=1), "reference")
HELD_OUT = in_files(make_scenarios(8, seed=2), "held_out")


@pytest.fixture(scope="module")
def reference(any_model):
    return ReferencePatterns.collect(any_model, REFERENCE)


def measure(model, maes, reference, heads=None, **options):
    """Every head of every held-out prompt, or some."""
    errors = ReconstructionErrors(maes, reference, describe_model(model).heads, **options)
    for seen in stream_prompts(model, HELD_OUT.tokens()):
        chosen = torch.arange(len(seen.scaled)) if heads is None else torch.tensor(heads)
        errors.see(seen.place, seen.scaled[chosen], chosen)
    return errors.summarize(HELD_OUT)


def figure(frame, predictor, column="error", domain="all", layers="all"):
    chosen = frame[
        (frame["predictor"] == predictor)
        & (frame["domain"] == domain)
        & (frame["layers"] == layers)
    ]
    return chosen[column].item()


@torch.no_grad()
def test_errors_are_means_over_hidden_patches_of_the_same_masks(any_model, reference):
    mae = make_mae(seed=3)
    frame = measure(any_model, {"mine": mae}, reference, mask_seeds=(4,))
    mean = mae.grid.patchify(reference.head_means).mean(0)
    expected = {"mine": [], "additive fit": [], "mean patch": []}
    for seen in stream_prompts(any_model, HELD_OUT.tokens()):
        n = seen.scaled.shape[-1]
        patches = mae.grid.patchify(seen.scaled)
        # The masks' stream of randomness is that of the seed and the prompt's number.
        mask = random_masks(len(patches), patches.shape[1], 0.5, seeded(4, 2, seen.place))
        for name, predicted in {
            "mine": mae.fill_in(patches, mask, n_tokens=n),
            "additive fit": additive_fit(patches, mask, mean, mae.grid),
            "mean patch": mean.expand_as(patches),
        }.items():
            wrong = mae.grid.unpatchify((predicted - patches) * mask[..., None], n)
            hidden = mae.grid.unpatchify(mask[..., None].expand_as(patches).float(), n)
            # Every value of the hidden patches that is of the pattern itself, not of the padding.
            expected[name].append((wrong.square().sum((1, 2)) / hidden.sum((1, 2))).mean().item())
    for name, errors in expected.items():
        assert figure(frame, name) == pytest.approx(np.mean(errors), rel=1e-4)
    assert figure(frame, "mine", "ratio") == pytest.approx(
        np.mean(expected["mine"]) / np.mean(expected["mean patch"]), rel=1e-4
    )


def test_every_predictor_is_measured_by_domain_and_by_layer(any_model, reference):
    frame = measure(any_model, {"mine": make_mae()}, reference)
    assert set(frame["predictor"]) == {"mine", *BASELINES}
    assert set(frame["domain"]) == {"all", "java", "python"}
    thirds = {"early third", "middle third", "late third"}
    assert set(frame["layers"]) == {"all", *thirds, "L0", "L1", "L2"}
    assert (frame["low"] <= frame["error"]).all()
    assert (frame["error"] <= frame["high"]).all()
    assert (frame[frame["predictor"] == "mean patch"]["ratio"] == 1).all()
    by_layer = [figure(frame, "mine", layers=f"L{layer}") for layer in range(3)]
    assert figure(frame, "mine") == pytest.approx(np.mean(by_layer))
    assert figure(frame, "mine", "n_patterns") == 8 * 12
    assert figure(frame, "mine", "n_patterns", domain="java", layers="L1") == 4 * 4
    assert figure(frame, "mine", "n_files") == 4


def test_the_seed_spread_is_over_masks_and_absent_for_one(any_model, reference):
    maes = {"mine": make_mae()}
    several = measure(any_model, maes, reference, mask_seeds=(0, 1, 2))
    alone = [
        figure(measure(any_model, maes, reference, mask_seeds=(seed,)), "mine") for seed in range(3)
    ]
    assert figure(several, "mine") == pytest.approx(np.mean(alone))
    assert figure(several, "mine", "seed_spread") == pytest.approx(np.std(alone, ddof=1))
    assert np.isnan(
        figure(measure(any_model, maes, reference, mask_seeds=(0,)), "mine", "seed_spread")
    )


def test_some_heads_are_measured_as_the_heads_they_are(any_model, reference):
    whole = measure(any_model, {"mine": make_mae()}, reference)
    layer_one = measure(any_model, {"mine": make_mae()}, reference, heads=[4, 5, 6, 7])
    # The mean of a head does not depend on masks enough to hide which head it is of.
    ratio = figure(layer_one, "head's mean") / figure(whole, "head's mean", layers="L1")
    assert ratio == pytest.approx(1, abs=0.1)
    assert set(layer_one["layers"]) == {"all", "middle third", "L1"}


def test_apmaes_of_other_patches_or_ratios_have_baselines_of_their_own(any_model, reference):
    maes = {
        "coarse": make_mae(),
        "other weights": make_mae(seed=5),
        "fine": make_mae(patch_size=4),
        "hides more": make_mae(mask_ratio=0.75),
    }
    frame = measure(any_model, maes, reference, mask_seeds=(0,))
    groups = frame.groupby(["patch_size", "mask_ratio"])["predictor"].unique()
    assert {key: set(names) - set(BASELINES) for key, names in groups.items()} == {
        (8, 0.5): {"coarse", "other weights"},
        (4, 0.5): {"fine"},
        (8, 0.75): {"hides more"},
    }
    assert all(set(BASELINES) <= set(names) for names in groups)
    same = measure(any_model, maes, reference, mask_seeds=(0,), mask_ratio=0.25)
    assert set(same["mask_ratio"]) == {0.25}


def test_an_apmae_for_shorter_prompts_is_refused_by_name(any_model, reference):
    with pytest.raises(ValueError, match="short takes prompts of up to 16 tokens, these have 20"):
        measure(any_model, {"short": make_mae(n_ctx=16)}, reference)


def test_reference_patterns_are_means_of_heads_and_a_sample_of_patterns(any_model, reference):
    scaled = torch.stack([s.scaled for s in stream_prompts(any_model, REFERENCE.tokens())])
    assert torch.allclose(reference.head_means, scaled.mean(0), atol=1e-6)
    assert reference.sample.shape == (6 * 12, 20, 20)
    few = ReferencePatterns.collect(any_model, REFERENCE, n_patterns=10)
    assert len(few.sample) == 10


def test_sampled_prompts_are_spread_over_languages_and_files():
    scenarios = in_files(make_scenarios(40, per_file=4), "x", languages=("java", "java"))
    prose = in_files(make_scenarios(6, per_file=3), "y", languages=("prose", "prose"))
    everything = Scenarios([*scenarios, *prose])
    sample = sample_prompts(everything, 8, seed=1)
    assert sample.languages.count("java") == sample.languages.count("prose") == 4
    java = [s.file for s in sample if s.language == "java"]
    assert len(set(java)) == 4
    assert sample_prompts(everything, 20, seed=1)[:8] == sample
    assert sorted(map(repr, sample_prompts(everything, 99))) == sorted(map(repr, everything))
