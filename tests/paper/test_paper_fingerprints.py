"""The measures of fingerprints, on heads that are planted, and the whole on a small model."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from mae_helpers import tiny_config, tiny_mae
from scenario_helpers import byte_level_tokenizer
from torch.nn.functional import normalize

from aplens.mae import APMAE, identity
from aplens.mae import fit_fingerprint as fit_linear
from aplens.scenarios import Scenario, Scenarios
from aplens.study import Reporter
from paper import fingerprint_trials, fingerprints, fit_fingerprint, held_out, train_fingerprint
from paper.average import average
from paper.fingerprint_errors import predict_errors
from paper.fingerprint_measures import chance_of_kin, found_again, kin, stability
from paper.fingerprint_samples import ROWS
from paper.fingerprint_trials import Trial
from paper.held_out import PartOfCorpus, is_held_out
from paper.train_fingerprint import Recipe


def noisy_heads(n_prompts, n_heads, noise, seed=0):
    """The same heads for one seed, other prompts for every call's noise."""
    own = torch.randn(n_heads, 16, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(n_prompts)
    return normalize(own + noise * torch.randn(n_prompts, n_heads, 16, generator=generator), dim=-1)


def test_more_prompts_find_a_head_again_and_other_heads_are_chance():
    first, second = noisy_heads(24, 50, 2.0), noisy_heads(25, 50, 2.0)[:24]
    one, many = found_again(first, second, 1), found_again(first, second, 24)
    assert 1 / 50 < one.low <= one.value <= one.high < many.value
    assert found_again(first, noisy_heads(26, 50, 2.0, seed=1)[:24], 1).value < 0.06


def test_kin_are_found_where_scores_follow_the_vectors():
    known, asked = noisy_heads(8, 40, 0.1), noisy_heads(9, 40, 0.1)
    scores = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
    near, hits = kin(known, asked, scores, scores)
    assert near["induction"].value > 0.99
    assert hits["induction"].value == 1
    shuffled = scores[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    assert kin(known, asked, scores, shuffled)[0]["induction"].value < 0.5
    assert chance_of_kin(12) == 1


def test_clusters_that_are_there_stay():
    assert stability(noisy_heads(10, 5, 0.02), n_clusters=5)["half"] > 0.6
    assert stability(noisy_heads(10, 5, 50.0), n_clusters=5)["half"] < 0.3


def test_errors_are_foretold_by_what_foretells_them():
    generator = torch.Generator().manual_seed(0)
    correct = torch.rand(120, generator=generator) < 0.5
    prints = torch.randn(1, 6, 8, generator=generator).repeat(120, 1, 1)
    prints[~correct] += torch.randn(int((~correct).sum()), 6, 8, generator=generator)
    found = {
        "correct": correct,
        "fingerprint": normalize(prints, dim=-1),
        "confidence": torch.rand(120, 2, generator=generator),
        "statistics": torch.rand(120, 6, 8, generator=generator),
        "surprise": torch.rand(120, 6, 3, generator=generator),
    }
    auc = predict_errors(found, [f"file {i // 2}" for i in range(120)])
    assert auc["distance"][0].value > 0.95
    assert auc["distance"][1].low > 0
    assert auc["surprise"][0].value < 0.7


def test_no_file_is_on_both_sides():
    class Corpus:
        skipped = None

        def files(self, seed=0):
            from aplens.scenarios import SourceFile

            return (SourceFile(f"a/{i}.java", "") for i in range(200))

    held, other = ({f.path for f in PartOfCorpus(Corpus(), side).files()} for side in (True, False))
    assert not held & other
    assert len(held | other) == 200
    assert 30 < len(held) < 90
    assert all(map(is_held_out, held))


def test_prompts_are_drawn_from_the_side_that_is_asked_for():
    tokenizer = byte_level_tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = held_out.draw_prompts(tokenizer, "python", 4, 32, held_out=True)
    assert len(set(drawn.files)) == 4
    assert all(map(is_held_out, drawn.files))


def draw(model, domain, n, n_tokens, *, held_out, seed=0):
    """Prompts of random tokens, in place of those of a domain."""
    generator = torch.Generator().manual_seed(hash((domain == "java", held_out, seed)) % 1000)
    prompts = torch.randint(0, 101, (n, n_tokens), generator=generator).tolist()
    return Scenarios(
        Scenario("random", domain, f"{domain}{i}", 1, "", tuple(p), p[0], "left_to_right")
        for i, p in enumerate(prompts)
    )


@pytest.fixture
def small(any_model, tmp_path, monkeypatch):
    """A study of a small model on random prompts, as half of another model."""

    mae = tiny_mae()
    fit_linear(mae, any_model, draw(any_model, "java", 8, 16, held_out=False).tokens(), dim=8)
    mae.save_pretrained(tmp_path / "mae")
    monkeypatch.setattr(fingerprints, "draw_prompts", draw)
    setup = fingerprints.Setup(str(tmp_path / "mae"), ("small", "other"), "bridge", 4, 0)
    loaded = []

    def load(name, kind):
        loaded.append(name)
        return any_model

    return setup, tmp_path / "study", load, loaded


def test_the_whole_study_has_every_row_and_goes_on(small):
    setup, folder, load, loaded = small
    results = fingerprints.measure(setup, folder, Reporter(), load)
    assert set(ROWS) <= set(results)
    assert results["fingerprint"]["0, 4"].value > 1 / 12
    text = fingerprints.tables(folder, 16)
    assert text.count("| fingerprint |") == 2
    figures = fingerprints.all_figures(folder)
    assert set(ROWS) <= set(figures["row"])
    one = figures[(figures["row"] == "fingerprint") & (figures["measure"] == "0, 4")]
    assert one["value"].item() == pytest.approx(results["fingerprint"]["0, 4"].value, abs=1e-4)
    page = folder / "page.md"
    page.write_text("before\n<!-- fingerprints mae -->\nstale\n<!-- end -->\nafter\n")
    fingerprints.write_into(page, "fingerprints mae", text)
    assert "stale" not in page.read_text()
    assert page.read_text().startswith("before\n<!-- fingerprints mae -->\n\n### Told apart")
    assert page.read_text().endswith("<!-- end -->\nafter\n")
    loaded.clear()
    fingerprints.measure(setup, folder, Reporter(), load)
    assert loaded == []
    with pytest.raises(ValueError, match="prompts was 4, is 5"):
        fingerprints.measure(setup._replace(prompts=5), folder, Reporter(), load)


@pytest.fixture
def start(any_model, tmp_path, monkeypatch):
    """An AP-MAE with a fingerprint, in the folder `start`, and prompts to train it on."""
    monkeypatch.setattr(
        train_fingerprint, "draw_prompts", lambda *a, **k: draw(*a, **k, seed=len(a[1]))
    )
    mae = tiny_mae(base="additive", patch_input="centred")
    fit_linear(mae, any_model, draw(any_model, "java", 8, 16, held_out=False).tokens(), dim=8)
    mae.save_pretrained(tmp_path / "start")
    return mae


def test_a_fingerprint_is_trained_on_and_saved_in_half_precision(start, any_model, tmp_path):
    result = train_fingerprint.train(
        str(tmp_path / "start"),
        Recipe(("small", "one whose prompts are of the same files"), 16, 1.0),
        tmp_path / "run",
        Reporter(),
        lambda name, kind: any_model,
    )
    assert result.history[-1]["retrieval"] > 0
    saved = APMAE.from_pretrained(tmp_path / "run" / "float16")
    assert saved.config.identity_weight == Recipe().identity_weight
    assert torch.equal(saved.to_fingerprint.weight, result.mae.to_fingerprint.weight.half().float())


def test_the_weights_of_several_are_averaged(tmp_path):
    for seed in (0, 1, 2):
        APMAE(tiny_config(), seed=seed).save_pretrained(tmp_path / str(seed))
    APMAE(tiny_config(encoder_depth=1)).save_pretrained(tmp_path / "shallow")
    names = [str(tmp_path / name) for name in "012"]
    mean = average(names, tmp_path / "mean").state_dict()
    saved = APMAE.from_pretrained(tmp_path / "mean").state_dict()
    weights = [APMAE.from_pretrained(name).state_dict() for name in names]
    for key, value in mean.items():
        assert torch.allclose(value, sum(each[key] for each in weights) / 3, atol=1e-6)
        assert torch.equal(saved[key], value.half().float())
    with pytest.raises(ValueError, match="shallow have other shapes"):
        average([str(tmp_path / "shallow"), *names], tmp_path / "none")
    with pytest.raises(ValueError, match="two AP-MAEs or more"):
        average(names[:1], tmp_path / "none")


def test_trials_change_what_they_say_and_go_on(start, any_model, tmp_path, monkeypatch):
    trials = {
        "hot": Trial({"identity_weight": 3.0}, temperature=0.2),
        "shallow": Trial(config={"encoder_depth": 1}),
        "cls": Trial(config={"decoder_context": "cls", "base": "none"}),
    }
    seen = []

    def train(mae, recipe, *args):
        seen.append((APMAE.from_pretrained(mae).config, recipe, identity.TEMPERATURE))
        return train_fingerprint.train(mae, recipe, *args)

    monkeypatch.setattr(fingerprint_trials, "TRIALS", trials)
    monkeypatch.setattr(fingerprint_trials, "train", train)
    for module in (fingerprint_trials, fit_fingerprint):
        monkeypatch.setattr(module, "draw_prompts", draw)
    run = partial(
        fingerprint_trials.run_trials,
        str(tmp_path / "start"),
        ("small",),
        256,
        tmp_path / "trials",
        Reporter(),
        lambda name, kind: any_model,
        ("small", "other"),
        4,
    )
    table = run()
    assert [row[0] for row in table.rows] == ["no training", *trials]
    (_, hot, temperature), (shallow, _, usual), (cls, _, _) = seen
    assert (hot.identity_weight, temperature, usual) == (3.0, 0.2, 0.1)
    assert (shallow.encoder_depth, cls.decoder_context) == (1, "cls")
    assert run().rows == table.rows
    assert len(seen) == 3
