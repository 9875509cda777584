"""Maps of heads: which are of a kind, in one model and over several; the page in a browser."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from mae_helpers import tiny_mae
from safetensors.torch import load_file, save_file
from study_fixtures import aplens_command
from test_views import HOSTILE, Page, data_of, open_page

from aplens import Head, HeadMap, collect_patterns, map_heads, read_prompts
from aplens.describe import ModelHeads
from aplens.heads import ModelShape
from aplens.patterns import TEMPLATES
from aplens.scenarios import ScenarioError, TextCorpus, prose_and_code
from aplens.scenarios.passages import draw_passages

TOKENS = torch.randint(0, 101, (6, 16), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def mae():
    return tiny_mae(fingerprint_dim=8)


@pytest.fixture(scope="module")
def two(any_model, other_model, mae):
    return map_heads({"one": any_model, "other": other_model}, TOKENS, mae=mae)


def made_up(name="made-up", n_layers=5, n_heads=6, n_prompts=4, seed=0, texts=None) -> ModelHeads:
    """Heads that no model has: each layer's are of one kind, up to a little noise."""
    heads = tuple(Head(layer, head) for layer in range(n_layers) for head in range(n_heads))
    kinds = torch.eye(8)[[head.layer % 8 for head in heads]]
    noise = torch.Generator().manual_seed(seed)
    halves = kinds + 0.05 * torch.randn(2, len(heads), 8, generator=noise)
    scores = torch.rand(len(heads), len(TEMPLATES), generator=noise)
    k = min(3, n_prompts)
    return ModelHeads(
        name=name,
        model=ModelShape(name, n_layers, n_heads),
        heads=heads,
        fingerprints=halves.mean(0),
        halves=halves,
        template_scores=scores,
        templates=tuple(TEMPLATES[head.layer % len(TEMPLATES)] for head in heads),
        template_shares=torch.ones(len(heads)),
        pictures=torch.randint(0, 256, (len(heads), 24, 24), generator=noise).to(torch.uint8),
        departures=torch.arange(k).expand(len(heads), k).contiguous(),
        surprises=torch.tensor([0.5, 0.25, 0.125])[:k].expand(len(heads), k).contiguous(),
        texts=tuple(texts or [f"prompt number {i}" for i in range(n_prompts)]),
    )


# What a map knows


def test_a_fingerprint_is_the_mean_over_prompts(any_model, mae):
    found = map_heads(any_model, TOKENS, mae=mae, batch_size=4)
    by_prompt = mae.fingerprint(collect_patterns(any_model, TOKENS))
    (heads,) = found.models
    torch.testing.assert_close(heads.fingerprints, by_prompt.mean(0), atol=1e-5, rtol=1e-4)
    assert heads.halves is not None
    torch.testing.assert_close(heads.halves.mean(0), by_prompt.mean(0), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(*heads.halves)
    frame = found.to_frame()
    assert frame.loc["L1H2", ["layer", "head"]].tolist() == [1, 2]
    assert len(frame) == len(found) == 12
    assert frame["spread"].between(0, 1).all()
    assert frame["between_halves"].gt(0).all()


def test_prompts_are_ranked_by_how_far_heads_depart_from_their_habits(any_model, mae):
    (heads,) = map_heads(any_model, TOKENS, mae=mae, batch_size=4).models
    patterns = collect_patterns(any_model, TOKENS)
    habits = mae.expect(patterns, 4)
    beyond = (patterns.values[..., -4:, :] - habits).clamp(min=0).sum(-1).mean(-1)
    expected = beyond.topk(3, dim=0)
    torch.testing.assert_close(heads.surprises, expected.values.T, atol=1e-5, rtol=1e-4)
    assert torch.equal(heads.departures, expected.indices.T)


def test_the_typical_pattern_is_the_one_nearest_to_the_mean(any_model, mae):
    (heads,) = map_heads(any_model, TOKENS, mae=mae).models
    patterns = collect_patterns(any_model, TOKENS)
    fingerprints = mae.fingerprint(patterns)
    nearest = (fingerprints * fingerprints.mean(0)).sum(-1).argmax(0)
    for place in range(12):
        attention = patterns.values[nearest[place], place]
        corner = heads.pictures[place, -1, -1].item()
        assert corner == pytest.approx(255 * attention[-1, -1].sqrt().item(), abs=1)


def test_prompts_of_several_lengths_count_as_they_would_alone(any_model, mae):
    ragged = [TOKENS[0, :7].tolist(), TOKENS[1].tolist(), TOKENS[2, :11].tolist()]
    together = map_heads(any_model, ragged, mae=mae).models[0]
    alone = [map_heads(any_model, [ids], mae=mae).models[0] for ids in ragged]
    mean = torch.stack([each.fingerprints for each in alone]).mean(0)
    torch.testing.assert_close(together.fingerprints, mean, atol=1e-5, rtol=1e-4)
    assert alone[0].halves is None


def test_long_prompts_are_cut_and_short_ones_left_out_with_a_word(any_model, other_model, mae):
    long = torch.cat([TOKENS, TOKENS], dim=1)
    with pytest.warns(UserWarning, match="their first 16 tokens are taken") as caught:
        cut = map_heads({"a": any_model, "b": other_model}, long, mae=mae)
    assert len(caught) == 1
    whole = map_heads({"a": any_model, "b": other_model}, TOKENS, mae=mae)
    torch.testing.assert_close(cut.directions, whole.directions)
    with pytest.warns(UserWarning, match="1 of 3 prompts have at most 4 tokens") as left_out:
        found = map_heads(any_model, [[1, 2, 3], *TOKENS[:2].tolist()], mae=mae)
    assert len(found.models[0].texts) == 2
    assert {warning.filename for warning in [*caught, *left_out]} == {__file__}


# Heads of a kind


def test_nearest_twins_and_groups_know_kinds_over_models():
    joined = HeadMap((made_up("a"), made_up("b", seed=1)), "mae")
    nearest = joined.nearest("L2H1", k=11)
    assert set(nearest["layer"]) == {2}
    assert nearest["similarity"].is_monotonic_decreasing
    assert sorted(zip(nearest["model"], nearest.index, strict=True)) == sorted(
        (model, f"L2H{head}") for model in "ab" for head in range(6) if (model, head) != ("a", 1)
    )
    across = joined.nearest("L2H1", k=3, model="b", among="a")
    assert set(across["model"]) == {"a"}
    assert set(across["layer"]) == {2}
    twins = joined.twins()
    assert len(twins) >= 5
    assert [int(twin[1]) for twin in twins["twin"]] == twins["layer"].tolist()
    assert set(twins["model"]) == {"a"}
    assert set(twins["twin_model"]) == {"b"}
    groups = joined.groups(5)
    assert groups["n_heads"].tolist() == [12] * 5
    assert sorted(groups["name"]) == sorted(TEMPLATES[:5])
    assert all(len(groups[model][0]) == 6 for model in "ab")


def test_a_group_without_a_common_template_is_mixed():
    heads = made_up()
    names = [*TEMPLATES, "mixed"]
    templates = tuple(names[place % len(names)] for place in range(30))
    groups = HeadMap((replace(heads, templates=templates),), "mae").groups(5)
    assert set(groups["name"]) == {"mixed"}
    assert groups["share"].max() < 0.5


def test_what_cannot_be_compared_is_refused(two, any_model, other_model, mae):
    one = map_heads(any_model, TOKENS, mae=mae)
    with pytest.raises(ValueError, match="twins are heads of two models"):
        one.twins()
    with pytest.raises(ValueError, match="no model 'third' is on this map: one, other"):
        two.nearest("L0H0", model="third")
    with pytest.raises(ValueError, match="layer 7 is out of range"):
        two.nearest("L7H0")
    with pytest.raises(ValueError, match="expected one head of one"):
        two.nearest("L0H0, L0H1")
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        two.nearest("L0H0", k=0)
    with pytest.raises(ValueError, match=r"n_groups must be 1 to 24, the heads, got 25"):
        two.groups(25)
    single = map_heads(any_model, TOKENS[:1], mae=mae)
    assert single.to_frame()["between_halves"].isna().all()


def test_models_are_told_apart_by_name(any_model, other_model, mae):
    with pytest.raises(ValueError, match="several models are called 'tiny-other': give a dict"):
        map_heads([other_model, other_model], TOKENS, mae=mae)
    with pytest.raises(ValueError, match="at least one model, got none"):
        map_heads([], TOKENS, mae=mae)
    with pytest.raises(ValueError, match="has no fingerprint"):
        map_heads(any_model, TOKENS, mae=tiny_mae())


def test_maps_of_one_model_each_join_to_the_map_of_both(two, any_model, other_model, mae):
    maps = [
        map_heads({n: m}, TOKENS, mae=mae) for n, m in (("one", any_model), ("other", other_model))
    ]
    joined = HeadMap.join(maps)
    assert torch.equal(joined.directions, two.directions)
    assert repr(joined) == "HeadMap(24 heads: 12 of one, 12 of other; 6 prompts)"
    with pytest.raises(ValueError, match="different AP-MAEs do not compare"):
        HeadMap.join([maps[0], replace(maps[1], mae="another")])
    with pytest.raises(ValueError, match="several models are called 'one'"):
        HeadMap.join([maps[0], maps[0]])


def test_progress_counts_all_models_prompts(any_model, other_model, mae):
    seen = []
    map_heads(
        [any_model, other_model],
        TOKENS,
        mae=mae,
        batch_size=4,
        progress=lambda *counts: seen.append(counts),
    )
    assert seen == [(4, 12), (6, 12), (10, 12), (12, 12)]


# Files


def test_a_map_is_saved_and_loaded(two, tmp_path):
    two.save(tmp_path / "map.safetensors")
    loaded = HeadMap.load(tmp_path / "map.safetensors")
    assert loaded.mae == two.mae
    assert loaded.names == two.names
    assert loaded.to_frame().equals(two.to_frame())
    assert loaded.show("pca") == two.show("pca")


def test_a_damaged_map_is_refused_by_name(two, tmp_path):
    path = tmp_path / "map.safetensors"
    two.save(path)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    arrays, (key, header) = load_file(path), next(iter(metadata.items()))

    facts = json.loads(header)

    def refused(match, *, facts=facts, **changed):
        save_file({**arrays, **changed}, path, metadata={key: json.dumps(facts)})
        with pytest.raises(ValueError, match=f"map.safetensors is a damaged map.*{match}"):
            HeadMap.load(path)

    refused("does not match its checksum", **{"0.pictures": arrays["0.pictures"] ^ 1})
    refused("does not match its checksum", facts={**facts, "mae": "another"})
    # The first files have no checksum.
    del facts["checksum"]
    save_file(arrays, path, metadata={key: json.dumps(facts)})
    assert HeadMap.load(path).to_frame().equals(two.to_frame())
    refused("version 99", facts={**facts, "version": 99})
    refused("mae is missing", facts={"version": 1, "models": []})
    refused("must be finite", **{"0.fingerprints": arrays["0.fingerprints"] * torch.nan})
    refused("expected pictures of shape", **{"0.pictures": arrays["0.pictures"][:3]})
    refused("torch.int64", **{"1.departures": arrays["1.departures"].float()})
    refused("places of 6 prompts", **{"1.departures": arrays["1.departures"] + 6})
    first, second = facts["models"]
    refused(
        "cannot read 'a' as a head", facts={**facts, "models": [{**first, "heads": [["a", 1]]}]}
    )
    refused("7 is out of range", facts={**facts, "models": [{**first, "heads": [[7, 0]] * 12}]})
    refused("several models", facts={**facts, "models": [first, {**second, "name": "one"}]})
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is not a map of heads saved by aplens"):
        HeadMap.load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is not a map of heads saved by aplens"):
        HeadMap.load(path)
    with pytest.raises(FileNotFoundError):
        HeadMap.load(tmp_path / "missing")


# The figure and the page


def test_the_figure_shows_every_head_by_template_and_model(two):
    (axes,) = two.plot("pca").axes
    assert sum(len(dots.get_offsets()) for dots in axes.collections) == 24
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels[-2:] == ["one", "other"]


def test_hostile_names_and_prompts_stay_text():
    model = made_up(HOSTILE[0], texts=HOSTILE)
    view = HeadMap((model,), "mae").show("pca")
    page = Page(view.html)
    assert page.tags.count("script") == 3
    assert not page.all("img")
    assert not page.all("iframe")
    assert data_of(view)["models"][0]["name"] == HOSTILE[0]


def open_map(chromium, view, tmp_path):
    page, logged, requested = open_page(chromium, view.save(tmp_path / "map.html"))
    page.wait_for_selector("#departures")
    assert logged == []
    assert requested == [(tmp_path / "map.html").as_uri()]
    return page


def mark(page, name):
    return page.locator(f"#scatter path[data-head='{name}']")


def chosen(page):
    return page.locator("#detail h2").inner_text()


@pytest.mark.browser
def test_pointing_clicking_and_searching_on_the_page(chromium, tmp_path):
    joined = HeadMap((made_up("a"), made_up("b", seed=1)), "mae")
    page = open_map(chromium, joined.show("pca"), tmp_path)
    assert page.locator("#scatter path").count() == 60
    assert page.locator(".grid rect").count() == 60
    assert chosen(page) == "L1H4 of a"  # the strongest induction head

    page.locator(".grid").nth(1).locator("rect[data-place='40']").hover()
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert tip.inner_text().split("\n") == ["L1H4", "b", "layer 1, head 4", "duplicate token"]
    colors = tip.locator("canvas").evaluate(
        "c => new Set(c.getContext('2d').getImageData(0, 0, 24, 24).data).size"
    )
    assert colors > 20
    assert chosen(page) == "L1H4 of a"
    page.locator(".grid").nth(1).locator("rect[data-place='40']").click()
    assert chosen(page) == "L1H4 of b"
    assert page.locator("#scatter path.near").count() == 10
    nearest = joined.nearest("L1H4", 5, model="b", among="a")
    shown = page.locator(".heads").first.locator("button").all_inner_texts()
    expected = [f"{row.Index} {row.similarity:.2f}" for row in nearest.itertuples()]
    assert [" ".join(text.split()) for text in shown] == expected
    assert "Group" in page.locator("#detail").inner_text()
    departures = page.locator("#departures li").all_inner_texts()
    assert departures[0].startswith("prompt 0: 50 % of attention beyond its habit")
    assert "prompt number 0" in departures[0]

    page.locator(".heads button").first.click()
    assert chosen(page) == f"{nearest.index[0]} of a"
    page.keyboard.press("/")
    page.keyboard.type("L3H2")
    assert chosen(page) == "L3H2 of a"
    assert page.locator("#scatter path:not(.dim)").count() == 2
    assert page.locator("#found").inner_text() == "2 heads"
    page.keyboard.press("Enter")
    assert chosen(page) == "L3H2 of b"
    page.keyboard.press("Escape")
    assert page.locator("#scatter path.dim").count() == 0
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert chosen(page) == "L4H3 of b"
    page.locator(".key", has_text="induction").click()
    assert page.locator("#scatter path:not(.dim)").count() == 12
    page.close()


@pytest.mark.browser
def test_pointing_at_the_scatter_finds_the_nearest_mark(chromium, tmp_path):
    page = open_map(chromium, HeadMap((made_up(),), "mae").show("pca"), tmp_path)
    box = mark(page, "made-up L4H5").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator("#tip b").inner_text().startswith("L4H")
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert chosen(page).startswith("L4H")
    page.close()


@pytest.mark.browser
def test_a_thousand_heads_are_small_and_each_answers_a_click(chromium, tmp_path):
    view = HeadMap((made_up("large", 40, 25, n_prompts=64),), "mae").show("pca")
    assert len(view.html.encode()) < 5_000_000
    page = open_map(chromium, view, tmp_path)
    for place in (0, 517, 999):
        page.locator(f".grid rect[data-place='{place}']").click()
        assert chosen(page) == f"L{place // 25}H{place % 25} of large"
    page.close()


# The command


def test_the_command_maps_models_one_after_the_other(
    monkeypatch, tmp_path, any_model, other_model, mae
):
    from aplens.study import head_maps

    known = {"a": any_model, "b": other_model}
    monkeypatch.setattr(head_maps, "load_model", known.__getitem__)
    ids = {"first": TOKENS[0].tolist(), "second": TOKENS[1].tolist() * 2}
    monkeypatch.setattr(
        head_maps,
        "read_prompts",
        lambda model, texts: read_prompts(model, [ids[text] for text in texts]),
    )
    mae.save_pretrained(tmp_path / "mae")
    (tmp_path / "prompts.txt").write_text("first\n\nsecond\n")
    (tmp_path / "prompts.json").write_text('["first", "second"]')

    def run(*arguments):
        return aplens_command("map", *arguments, "--mae", tmp_path / "mae")

    told = run("a", "b", "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "map.html")
    assert told.exit_code == 0, told.output
    assert "the first 16 tokens are taken" in told.output
    assert "HeadMap(24 heads: 12 of a, 12 of b; 2 prompts)" in told.output
    assert "24 heads of a, b" in (tmp_path / "map.html").read_text(encoding="utf-8")
    # What `aplens rank` reads is read here as well.
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "first", "answer": "x"}\n')
    told = run("a", "--prompts", tmp_path / "prompts.jsonl", "-o", tmp_path / "map.html")
    assert "1 prompts" in told.output, told.output
    told = run("a", "--prompts", tmp_path / "prompts.json", "-o", tmp_path / "map.safetensors")
    assert HeadMap.load(tmp_path / "map.safetensors").names == ("a",)

    (tmp_path / "prompts.json").write_text('{"first": 1}')
    told = run("a", "--prompts", tmp_path / "prompts.json")
    assert "unknown column 'first'; known are prompt" in told.output
    (tmp_path / "prompts.txt").write_text(" \n")
    assert "has no prompts" in run("a", "--prompts", tmp_path / "prompts.txt").output
    assert "a is named twice" in run("a", "a").output
    assert run("a", "--prompts", tmp_path / "missing.txt").exit_code == 1


def test_passages_are_whole_lines_from_the_middle_of_files():
    text = "".join(f"line {number}\n" for number in range(90))
    corpus = TextCorpus({"a": lambda: text, "b": lambda: text[::-1], "short": lambda: "\n" * 40})
    passages = draw_passages(corpus, 2, 300)
    assert sorted(passages)[1] == text[text.index("line 31") :][:300]
    with pytest.raises(ScenarioError, match="has 2 files with 300 characters in their last two"):
        draw_passages(corpus, 3, 300)
    prose, code = prose_and_code(2, 100)
    assert len(prose) == len(code) == 100
