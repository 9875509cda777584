"""The catalogue of templates: planted ones are found, named, kept and found again elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_tiny_bridge
from mae_helpers import tiny_mae

from aplens.heads import Head
from aplens.patterns import MIXED, TEMPLATES
from paper.catalogue import (
    SCORES,
    PatternSample,
    TemplateCatalogue,
    check_names,
    compare_with_scores,
    describe_samples,
    describe_switching,
    head_shares,
    measure_stability,
    name_cluster,
    plot_catalogue,
    sample_patterns,
)

#: What each of four heads does: one template, or, for the last, one of two at random.
HEADS = ("previous_token", "first_token", "self", None)


def make_sample(source="planted", n_prompts=60, seed=0, noise=0.02):
    """Embeddings that show which template a pattern follows, and strengths that say so."""
    rng = np.random.default_rng(seed)
    choice = np.empty((n_prompts, len(HEADS)), dtype=int)
    for head, name in enumerate(HEADS):
        names = ["induction", "delimiter"] if name is None else [name]
        choice[:, head] = [SCORES.index(each) for each in rng.choice(names, n_prompts)]
    embeddings = np.eye(len(SCORES), 16)[choice] + noise * rng.normal(size=(*choice.shape, 16))
    strengths = 0.8 * np.eye(len(SCORES))[choice] + 0.02 * rng.normal(size=(*choice.shape, 1))
    heads = tuple(Head(0, head) for head in range(len(HEADS)))
    pictures = np.full((*choice.shape, 2, 32, 32), choice[..., None, None, None], np.float16)
    return PatternSample(
        source, heads, embeddings.astype(np.float16), strengths.astype(np.float32), pictures
    )


@pytest.fixture(scope="module")
def mae():
    return tiny_mae()


@pytest.fixture(scope="module")
def catalogue():
    return TemplateCatalogue.fit([make_sample()], n_clusters=5)


def test_planted_templates_are_found_and_named(catalogue):
    assert sorted(catalogue.names) == sorted(
        ["previous_token", "first_token", "self", "induction", "delimiter"]
    )
    shares = head_shares(catalogue, make_sample(seed=1))
    for head, name in enumerate(HEADS[:3]):
        assert shares.loc[f"L0H{head}", name] == 1
    assert shares.loc["L0H3", ["induction", "delimiter"]].sum() == 1
    assert 0.2 < shares.loc["L0H3", "induction"] < 0.8
    for name, picture in zip(catalogue.names, catalogue.pictures, strict=True):
        np.testing.assert_allclose(picture, SCORES.index(name))


def test_tables_say_how_often_where_and_how_heads_switch(catalogue):
    samples = [make_sample("one"), make_sample("two", n_prompts=30, seed=2)]
    frame = describe_samples(catalogue, samples).set_index(["source", "name"])
    assert frame.loc[("two", "self"), "share"] == 0.25
    assert frame.loc[("two", "self"), ["n_heads", "n_heads_with"]].tolist() == [1, 1]
    assert frame.loc[("one", "self"), "top_heads"] == "L0H2"
    assert frame.loc["one", "share"].sum() == pytest.approx(1)
    switching = describe_switching(catalogue, samples).set_index("source").loc["one"]
    assert (switching["one"], switching["two"], switching["more"]) == (3, 1, 0)
    assert switching["most_switching"].startswith("L0H3: ")


def test_agreement_is_perfect_where_embeddings_show_what_is_measured(catalogue):
    frame = compare_with_scores(catalogue, [make_sample(seed=3)]).set_index("name")
    row = frame.loc["previous_token"]
    assert (row["heads"], row["found"], row["named"]) == (1, 1, 1)
    assert row["correlation"] > 0.7


def test_names_of_new_prompts_are_those_measured_there():
    frame = check_names([make_sample()], n_clusters=5).set_index("name")
    assert frame.loc["self", ["measured", "named"]].tolist() == [30, 30]
    assert frame.loc["all", ["precision", "recall"]].tolist() == [1, 1]
    wrong = make_sample()
    wrong.strengths[:, 0] = wrong.strengths[:, 1]  # head 0 is measured as head 1 is
    frame = check_names([wrong], n_clusters=5).set_index("name")
    assert frame.loc["first_token", "measured"] == 60
    assert "previous_token" not in frame.index


def test_stability_is_1_for_clear_templates_and_not_for_noise(catalogue):
    clear = measure_stability(catalogue, [make_sample()], seeds=(1, 2))
    assert clear[["clusters", "names"]].to_numpy().min() > 0.99
    noise = make_sample(noise=3.0)
    loose = TemplateCatalogue.fit([noise], n_clusters=5)
    assert measure_stability(loose, [noise], seeds=(1,))["clusters"].min() < 0.5


def test_every_sample_counts_the_same():
    large, small = make_sample("large", 300), make_sample("small", 10, seed=1)
    small.strengths[:] = 0.1  # nothing has a name there
    catalogue = TemplateCatalogue.fit([large, small], n_clusters=5)
    strengths = dict(zip(catalogue.names, catalogue.strengths.max(axis=1), strict=True))
    # A cluster's mean is half way between the large sample's 0.8 and the small one's 0.1.
    assert max(strengths.values()) < 0.6


def test_the_figure_has_two_pictures_for_each_template(catalogue):
    figure = plot_catalogue(catalogue)
    titles = {panel._suptitle.get_text() for panel in figure.subfigs if panel._suptitle}
    assert titles == {f"{name}, 25.0%" for name in HEADS[:3]} | {
        f"{name}, {catalogue.counts[catalogue.names.index(name)] / 240:.1%}"
        for name in ("induction", "delimiter")
    }
    assert sum(len(axis.images) for panel in figure.subfigs for axis in panel.axes) == 10


def test_a_catalogue_comes_back_and_names_the_same(tmp_path, catalogue):
    catalogue.save(tmp_path / "c.safetensors")
    loaded = TemplateCatalogue.load(tmp_path / "c.safetensors")
    sample = make_sample(seed=9)
    np.testing.assert_array_equal(
        loaded.assign_names(sample.embeddings), catalogue.assign_names(sample.embeddings)
    )
    assert loaded.metadata == catalogue.metadata


def test_what_is_no_catalogue_is_named(tmp_path, catalogue):
    path = tmp_path / "c.safetensors"
    with pytest.raises(FileNotFoundError):
        TemplateCatalogue.load(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"c\.safetensors holds no template catalogue"):
        TemplateCatalogue.load(path)
    catalogue.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"c\.safetensors holds no template catalogue"):
        TemplateCatalogue.load(path)
    from dataclasses import replace

    replace(catalogue, counts=catalogue.counts[:-1]).save(path)
    with pytest.raises(ValueError, match=r"counts must be \(5,\), got \(4,\)"):
        TemplateCatalogue.load(path)
    tiny_mae().save_pretrained(tmp_path / "mae")
    with pytest.raises(ValueError, match="it is not one of version 1"):
        TemplateCatalogue.load(tmp_path / "mae" / "model.safetensors")


def test_wrong_embeddings_are_refused(catalogue):
    with pytest.raises(ValueError, match="embeddings of 16"):
        catalogue.assign(np.ones((3, 8)))
    with pytest.raises(ValueError, match="NaN"):
        catalogue.assign(np.full((3, 16), np.nan))


@pytest.mark.parametrize("n_clusters", [1, 1000])
def test_a_wrong_number_of_clusters_is_refused(n_clusters):
    with pytest.raises(ValueError, match=f"n_clusters must be 2 to 240 .*got {n_clusters}"):
        TemplateCatalogue.fit([make_sample()], n_clusters=n_clusters)


@pytest.mark.parametrize(
    ("strong", "name"),
    [
        ({"induction": 0.7, "first_token": 0.5}, "induction"),
        ({"local": 0.9, "self": 0.6}, "self"),
        ({"local": 0.9, "self": 0.2}, "local"),
        ({"uniform": 0.3, "first_token": 0.35}, "first_token + uniform"),
        ({"uniform": 0.1, "first_token": 0.35}, MIXED),
        ({}, MIXED),
    ],
)
def test_names(strong, name):
    row = np.full(len(SCORES), np.nan)
    row[: len(TEMPLATES)] = 0.0
    for template, strength in strong.items():
        row[SCORES.index(template)] = strength
    assert name_cluster(row) == name


def test_a_model_without_a_tokenizer_is_refused(mae):
    with pytest.raises(ValueError, match="tiny-bridge has no tokenizer"):
        sample_patterns(make_tiny_bridge(), [[1, 2, 3]], mae)


def test_a_real_sample_holds_every_head_on_every_prompt(tiny_saved, mae):
    from aplens import collect_patterns, load_model
    from aplens.patterns import template_scores, template_strengths

    model = load_model(tiny_saved, kind="bridge")
    tokens = model.tokenizer("class Adder { int a = 1;", return_tensors="pt").input_ids[:, :14]
    sample = sample_patterns(model, tokens, mae, "tiny")
    assert len(sample) == 1
    assert sample.heads == tuple(Head(layer, head) for layer in range(2) for head in range(2))
    patterns = collect_patterns(model, tokens)
    expected = template_strengths(template_scores(patterns.prompt(0), tokens[0]), tokens[0])
    np.testing.assert_allclose(sample.strengths[0, :, : len(TEMPLATES)], expected, atol=1e-5)
    np.testing.assert_allclose(sample.embeddings[0], mae.encode(patterns)[0], atol=2e-2, rtol=2e-2)
