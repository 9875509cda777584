from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

from aplens import HeadRanking, parse_heads
from aplens.correctness import DEFAULT_FEATURES
from aplens.heads import ModelShape, all_heads
from aplens.interventions import AblationSweep, Setting, SettingResult
from aplens.mae import BASELINES, Reconstruction
from aplens.patterns import PatchGrid
from aplens.study import findings, sections
from aplens.study.findings import EFFECTS, SHAP_INCORRECT
from aplens.views.embed import render_template

HOSTILE = (
    "</code></pre></script><script>document.title = 'pwned'</script>"
    '<img src="http://example.invalid/x.png" onerror="document.title=1">\n'
    'String s = "quotes \' and & ampersands &lt;"; // {{ 7 * 7 }} {% raise %}\n'
    "// emoji 👩‍💻 and Hebrew שלום, then an override: \u202eesrever\u202c\n"
    "\tchar nul = '\x00'; char half = '\ud83d';" + "x" * 400
)


def make_shap(n_layers=12, n_heads=9, low_auc=0.5):
    rng = np.random.default_rng(0)
    heads = all_heads(n_layers, n_heads)
    mean = rng.normal(scale=0.05, size=len(heads))
    return HeadRanking(
        pd.DataFrame(
            {
                "layer": [head.layer for head in heads],
                "head": [head.head for head in heads],
                "importance": np.abs(mean) + 0.01,
                "mean": mean,
                "toward_incorrect": np.clip(mean, 0, None) + 0.004,
                "toward_correct": np.clip(-mean, 0, None) + 0.004,
            }
        ),
        model=ModelShape("tiny", n_layers, n_heads),
        metadata={
            "features": "clusters",
            "auc": [0.6, low_auc, 0.7],
            "confidence_auc": [0.8, 0.7, 0.9],
        },
    )


def make_effects(lows=(-0.9, -0.2, -0.1), highs=(-0.5, 0.1, -0.02)):
    """Three heads measured, the others estimated."""
    heads = all_heads(12, 9)
    mean = np.linspace(-0.05, 0.05, len(heads))
    mean[:3] = [-0.7, -0.3, -0.06]
    frame = pd.DataFrame(heads, columns=["layer", "head"])
    frame["importance"], frame["mean"] = np.abs(mean), mean
    frame["toward_incorrect"], frame["toward_correct"] = mean.clip(0), (-mean).clip(0)
    frame["low"], frame["high"], frame["measured"] = mean - 0.01, mean + 0.01, False
    frame.loc[:2, ["low", "high"]] = np.array([lows, highs]).T
    frame.loc[:2, "measured"] = True
    facts = {"method": "effects", "metric": "log_prob", "n_prompts": 64}
    return HeadRanking(frame, model=ModelShape("tiny", 12, 9), metadata=facts)


def make_sweep(n=200):
    rng = np.random.default_rng(0)
    clean = np.arange(n) % 2 == 0
    results = []
    for size, lost in ((1, 0.02), (2, 0.04), (5, 0.1), (20, 0.4), (50, 0.9)):
        settings = [Setting("random", size, seed) for seed in range(3)]
        settings += [Setting(choice, size, None) for choice in (SHAP_INCORRECT, EFFECTS)]
        for setting in settings:
            gained = (rng.random(n) < 0.06) & (setting.choice == SHAP_INCORRECT)
            correct = (clean & (rng.random(n) > lost)) | gained
            results.append(SettingResult(setting, parse_heads("L1H2, L3H4"), correct))
    return AblationSweep(
        index=np.arange(n),
        files=[f"F{i // 5}.java" for i in range(n)],
        clean=clean,
        results=results,
        skipped=["effects, 400 heads: it has 270"],
        setup={"method": "zero"},
    )


def make_reconstruction(n_patterns=3, n=64, patch=8):
    generator = torch.Generator().manual_seed(0)
    grid = PatchGrid(n, patch)
    shape = (n_patterns, 1, n)
    distance = (torch.arange(n)[:, None] - torch.arange(n)).clamp(min=0) / n
    original = (0.6 - 0.3 * distance + 0.1 * torch.randn(shape, generator=generator)).tril()
    mask = torch.rand(n_patterns, grid.n_patches, generator=generator) < 0.5
    patches = grid.patchify(original)
    masked = patches.masked_fill(mask[..., None], float("nan"))
    guess = torch.where(mask[..., None], patches.mean(dim=-1, keepdim=True), patches)
    return Reconstruction(
        original=original,
        masked=grid.unpatchify(masked, n),
        reconstructed=grid.unpatchify(guess, n),
        mask=mask,
        error=torch.tensor([0.0123, 0.0045, 0.0301])[:n_patterns],
    )


def task_accuracy():
    return pd.DataFrame(
        {
            "task": ["all", "random", "identifiers", "boolean_literals", "eol", "<b>closing</b>"],
            "n": [2000, 200, 200, 200, 200, 1200],
            "accuracy": [0.74, 0.585, 0.49, 0.555, 0.815, 0.82],
            "low": [0.72, 0.52, 0.42, 0.49, 0.76, 0.80],
            "high": [0.76, 0.65, 0.56, 0.62, 0.87, 0.84],
        }
    )


def predictors(usual=0.84, gain=(0.04, 0.01, 0.06)):
    frame = pd.DataFrame(
        {
            "features": [
                "majority",
                "task",
                "confidence",
                "statistics",
                "clusters",
                "surprise+unexpected",
                DEFAULT_FEATURES,
                "statistics+confidence",
            ],
            "task": "all",
            "auc": [0.5, 0.665, 0.801, 0.765, 0.53, 0.70, usual, 0.81],
        }
    )
    names = ("over_confidence", "over_confidence_low", "over_confidence_high")
    frame = frame.assign(**dict(zip(names, gain, strict=True)))
    frame["accuracy"] = frame["auc"] * 0.8 + 0.1
    for column in ("auc", "accuracy"):
        frame[f"{column}_low"] = frame[column] - 0.03
        frame[f"{column}_high"] = frame[column] + 0.03
    return frame


def reconstruction_error(own=0.0057):
    error = np.array([0.0141, 0.0109, 0.0059, own])
    return pd.DataFrame(
        {
            "predictor": [*BASELINES[:3], "AP-MAE"],
            "error": error,
            "low": error - 0.0003,
            "high": error + 0.0003,
        }
    )


FACTS = {
    "Model": "SmolLM2-135M-Instruct (HookedTransformer, float32)",
    "Corpus": "/usr/lib/jvm/java-17/lib/src.zip, 2,000 scenarios from 913 files",
    "Command": "aplens run study.toml --set 'title=\"<x>\"'",
    "Date": "2026-01-01",
}


def render_page(title, found, facts, notes, parts, samples):
    return render_template(
        "report.html.j2",
        title=title,
        found=found,
        facts=facts,
        notes=notes,
        sections=parts,
        samples=samples,
    )


def full_page():
    labels = ["L5H3", "L9H6", "L0H1"]
    long = "\n".join(f"    int line{i} = {i};" for i in range(30)) + "\n    return "
    place, tokens = "java/util/BitSet.java:417", (" true", " false")
    return render_page(
        "SmolLM2-135M-Instruct on java.base",
        [
            findings.describe_heads(make_effects(), make_sweep().summary()),
            findings.describe_predictors(predictors()),
            findings.describe_shap(make_shap(), make_sweep().summary()),
        ],
        FACTS,
        ["No JDK was found: the corpus is Python's standard library."],
        [
            sections.show_ranking(make_effects()),
            sections.show_shap(make_shap(low_auc=0.55)),
            sections.show_sweep(make_sweep()),
            sections.show_predictors(predictors()),
            sections.show_tasks(task_accuracy()),
            sections.show_reconstruction(make_reconstruction(), labels, reconstruction_error()),
            sections.show_times({"mine": 12.3, "observe": 204.0, "ablate": 95.5}),
        ],
        [
            sections.show_sample("boolean_literals", place, long, tokens, 0.61, False),
            sections.show_sample("eol", "<script>.java:3", HOSTILE, ("\u202e;\n", ";"), 0.97, True),
        ],
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "r.html"
    path.write_text(full_page(), encoding="utf-8")
    return path


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_needs_nothing_else(written):
    html = written.read_text(encoding="utf-8")
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert not page.all("script")
    assert not page.all("link")
    addresses = [a[key] for _, a in page.tags for key in ("src", "href") if key in a]
    assert addresses
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in addresses)
    assert "url(" not in html
    assert "@import" not in html


def test_every_part_is_there_with_its_numbers(written):
    page = Page(written.read_text(encoding="utf-8"))
    text = re.sub(r"\s+", " ", page.text)
    for expected in (
        "SmolLM2-135M-Instruct on java.base",
        "No JDK was found",
        "82.0 [80.0, 84.0]",  # accuracy of a task
        "0.0057 [0.0054, 0.0060]",  # reconstruction
        "0.0123",  # error of a pattern shown
        "0.801 [0.771, 0.831]",  # the confidence baseline
        "effects, 400 heads: it has 270",
        "3 min 24 s",
        "5 min 12 s",  # all stages
        "java/util/BitSet.java:417",
        "int line29 = 29;",
    ):
        assert expected in text, expected
    assert "int line3 = 3;" not in text  # only the last lines of a long prompt
    for head in [*make_effects().top(15), *make_shap().top(15)]:
        assert str(head) in text
    assert "−0.700 [−0.900, −0.500]measured" in text.replace("\xa0", " ")
    images = page.all("img")
    assert len(images) == 7
    assert all(len(image["alt"]) > 20 for image in images)
    assert len(page.all("figcaption")) == len(page.all("figure")) == 7
    assert len(page.all("table")) >= 7
    assert {th["scope"] for th in page.all("th")} == {"col", "row"}


def test_a_sweep_of_no_setting_says_why():
    sweep = make_sweep()
    sweep.results.clear()
    page = Page(render_page("x", [], {}, [], [sections.show_sweep(sweep)], []))
    assert "Not run: effects, 400 heads: it has 270" in page.text
    assert not page.all("img")


def test_the_same_results_give_the_same_bytes(written):
    assert full_page() == written.read_text(encoding="utf-8")


def test_hostile_source_code_stays_text(written):
    page = Page(written.read_text(encoding="utf-8"))
    assert not page.all("script")
    assert not page.all("b")
    assert len(page.all("img")) == 7
    assert "</code></pre></script><script>document.title = 'pwned'</script>" in page.text
    assert "quotes ' and & ampersands &lt;" in page.text
    assert "{{ 7 * 7 }} {% raise %}" in page.text
    assert "👩‍💻 and Hebrew שלום" in page.text
    assert r"\u{202E}esrever\u{202C}" in page.text
    assert r"nul = '\u{0000}'; char half = '\u{D83D}'" in page.text
    assert r"\u{202E};↵" in page.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00]", page.text)


def test_tasks_and_reconstruction_are_said_in_words():
    of_tasks = findings.describe_task_accuracy
    assert "right on 74% of 2,000 scenarios, from 49% (identifiers) to 82%" in of_tasks(
        task_accuracy()
    )

    of_errors = findings.describe_reconstruction
    error = reconstruction_error()
    assert "the intervals overlap: no clear difference" in of_errors(error)
    assert "; AP-MAE beat it." in of_errors(reconstruction_error(0.004))
    unknown = of_errors(reconstruction_error().assign(low=np.nan, high=np.nan))
    assert "there is no interval to say whether by chance" in unknown


def ablation(chosen, random, choice=EFFECTS):
    """A sweep in which given shares of 100 scenarios stay or become correct."""
    clean = np.arange(100) % 2 == 0
    order = np.argsort(~clean, kind="stable")  # the correct ones first

    def outcome(share):
        correct = np.zeros(100, dtype=bool)
        correct[order[: int(100 * share)]] = True
        return correct

    results = []
    for size, (own, other) in enumerate(zip(chosen, random, strict=True), start=1):
        heads = parse_heads("L0H0")
        results.append(SettingResult(Setting(choice, size, None), heads, outcome(own)))
        results.append(SettingResult(Setting("random", size, 0), heads, outcome(other)))
    files = [f"F{i}" for i in range(100)]
    return AblationSweep(np.arange(100), files, clean, results, [], {"method": "zero"})


def test_the_heads_that_matter_are_counted_named_and_compared_with_random_ones():
    hurt = findings.describe_heads(make_effects(), ablation((0.4, 0.2), (0.5, 0.45)).summary())
    assert "Of 3 heads measured, 2 have an effect" in hurt
    assert "largest are L0H0 (-0.70 [-0.90, -0.50] nats), L0H2 (-0.06 [-0.10, -0.02] nats)" in hurt
    assert "first 2 heads by effects ablated the model is right on 20.0%" in hurt
    assert "at random on 45.0%: a difference of -25.0 [" in hurt
    assert "clearly not 0 (the clearest of 2 sizes tried)" in hurt

    nothing = make_effects(lows=(-1, -1, -1), highs=(1, 1, 1))
    nothing = findings.describe_heads(nothing, ablation((0.5,), (0.5,)).summary())
    assert nothing.startswith("None of 3 heads measured has an effect whose interval excludes 0")
    assert "no clear difference (the clearest of 1 size tried)" in nothing
    alone = ablation((0.5,), (0.5,)).summary()
    alone = findings.describe_heads(
        make_effects(), alone[alone["choice"] != "random"].assign(over_random=np.nan)
    )
    assert "heads by effects were not ablated beside random ones" in alone


def test_the_predictor_of_errors_stands_beside_the_confidence():
    won = findings.describe_predictors(predictors())
    assert f"told by {DEFAULT_FEATURES} with AUC 0.840 [0.810, 0.870]" in won
    assert "confidence alone with 0.801 [0.771, 0.831]" in won
    assert "a difference of +0.040 [+0.010, +0.060], clearly not 0" in won
    tied = findings.describe_predictors(predictors(gain=(0.01, -0.02, 0.03)))
    assert "+0.010 [-0.020, +0.030], no clear difference" in tied
    others = predictors()
    others = others[others["features"] != DEFAULT_FEATURES]
    assert "surprise+unexpected (the best of 2 tried)" in findings.describe_predictors(others)
    bare = others[others["features"] != "confidence"]
    assert "confidence alone was not tried" in findings.describe_predictors(bare)


def test_a_ranking_at_chance_is_said_first_and_shows_no_picture():
    summary = ablation((0.5,), (0.5,), SHAP_INCORRECT).summary()
    noise = findings.describe_shap(make_shap(), summary)
    assert "SHAP ranking on clusters, the paper's choice, is of a predictor" in noise
    assert "that tells errors with AUC 0.600 [0.500, 0.700], no better than chance" in noise
    assert "do not use its order" in noise
    assert "first head by SHAP toward incorrect ablated" in noise
    good = findings.describe_shap(make_shap(low_auc=0.55), summary)
    assert "above chance" in good
    assert "do not use" not in good
    for low, is_noise in ((0.5, True), (0.55, False)):
        page = render_page("x", [], {}, [], [sections.show_shap(make_shap(low_auc=low))], [])
        assert ("<figure>" in page) is not is_noise
        before = page[: page.index("<table>")]
        assert ("At chance: do not use its order" in before) is is_noise
        assert (before.count("<details>") > before.count("</details>")) is is_noise


# In a real browser


@pytest.fixture(scope="module")
def opened(chromium, written):
    """The page at 900 px, with what it logged and what it asked the network for."""
    page = chromium.new_page(viewport={"width": 900, "height": 1000})
    logged, requested = [], []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(written.as_uri())
    page.wait_for_load_state("networkidle")
    return page, logged, requested


@pytest.mark.browser
def test_the_page_loads_without_errors_or_network(opened, written):
    page, logged, requested = opened
    assert page.title() == "SmolLM2-135M-Instruct on java.base"
    assert logged == []
    assert [url for url in requested if not url.startswith("data:")] == [written.as_uri()]


@pytest.mark.browser
def test_hostile_source_code_is_shown_and_does_not_run(opened):
    page, *_ = opened
    shown = page.locator("pre").last.inner_text()
    assert "<script>document.title = 'pwned'</script>" in shown
    assert page.evaluate("document.querySelectorAll('script').length") == 0
    assert page.evaluate("document.querySelectorAll('pre img').length") == 0
    # Everything after the hostile sample is still there, in its place.
    assert page.locator("footer").is_visible()
    assert page.locator("article").count() == 2


@pytest.mark.browser
def test_a_ranking_at_chance_is_behind_a_click(chromium):
    page = chromium.new_page()
    page.set_content(render_page("x", [], {}, [], [sections.show_shap(make_shap())], []))
    table = page.locator("section[aria-labelledby=shap] table").first
    assert not table.is_visible()
    page.get_by_text("No result, since the predictor is no better than chance").click()
    assert table.is_visible()
    page.close()


@pytest.mark.browser
def test_every_figure_is_drawn(opened):
    from io import BytesIO

    from PIL import Image

    page, *_ = opened
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    images = page.locator("img")
    assert images.count() == 7
    for index in range(images.count()):
        image = images.nth(index)
        width, height, complete = image.evaluate(
            "image => [image.naturalWidth, image.naturalHeight, image.complete]"
        )
        assert complete
        assert width > 200
        assert height > 80
        pixels = np.asarray(Image.open(BytesIO(image.screenshot())).convert("RGB"), dtype=int)
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
        assert (pixels.sum(axis=-1) < 600).mean() > 0.005  # not a white box


@pytest.mark.browser
@pytest.mark.parametrize("width", [900, 400])
def test_nothing_sticks_out_sideways(opened, width):
    page, *_ = opened
    page.set_viewport_size({"width": width, "height": 1000})
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 900, "height": 1000})


@pytest.mark.browser
def test_printing_opens_the_folded_numbers_and_fits_the_paper(opened):
    page, *_ = opened
    page.evaluate("for (const d of document.querySelectorAll('details')) d.open = false")
    folded = page.locator("details table")
    assert not any(table.is_visible() for table in folded.all())
    page.set_viewport_size({"width": 718, "height": 1000})  # A4 less its margins
    page.emulate_media(media="print")
    heights = [table.bounding_box()["height"] for table in folded.all()]
    assert min(heights) > 20
    assert page.evaluate("document.documentElement.scrollWidth") <= 718
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 900, "height": 1000})


@pytest.mark.browser
def test_dark_readers_get_a_dark_page(opened):
    page, *_ = opened

    def brightness():
        colors = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(number) for number in re.findall(r"\d+", colors)[:3]) / 3

    page.emulate_media(color_scheme="dark")
    assert brightness() < 60
    page.emulate_media(color_scheme="light")
    assert brightness() > 200


def test_tasks_of_few_scenarios_have_no_row_and_are_said_to_be_left_out():
    rows = [("many", i % 2 == 0) for i in range(12)] + [("few", True)] * 9
    table = pd.DataFrame(
        [{"task": task, "file": str(i), "correct": right} for i, (task, right) in enumerate(rows)]
    )
    frame = sections.task_accuracy(table)
    assert frame[["task", "n"]].values.tolist() == [["all", 21], ["many", 12]]
    text = " ".join(sections.show_tasks(frame).text)
    assert "9 scenarios, of tasks that have fewer than 10" in text
    whole = sections.show_tasks(sections.task_accuracy(table[table["task"] == "many"]))
    assert "fewer than" not in " ".join(whole.text)


def test_the_times_shown_add_up():
    for seconds in ({"mine": 1.26, "rank": 2.26}, {"mine": 61.5, "rank": 90.5, "ablate": 0.4}):
        (table,) = sections.show_times({**seconds, "report": 0.2}).tables
        shown = [
            sum(
                float(n) * (60 if unit == "min" else 1)
                for n, unit in re.findall(r"([\d.]+) (min|s)", row[1])
            )
            for row in table.rows
        ]
        assert shown[-1] == pytest.approx(sum(shown[:-1]))
        assert [row[0] for row in table.rows] == [*seconds, "all"]
