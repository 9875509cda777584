from __future__ import annotations

import base64
import gzip
import json
import re
import time
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from correctness_helpers import make_mae, make_observations, make_scenarios
from hypothesis import given, settings
from hypothesis import strategies as st
from mae_helpers import softmax_patterns, tiny_mae
from transformers.convert_slow_tokenizer import bytes_to_unicode

from aplens import AttentionPatterns, Head, HeadRanking, collect_patterns
from aplens._tokens import displayable_token, last_text, readable_text, token_texts
from aplens._words import displayable
from aplens.correctness import Observations
from aplens.correctness.clusters import HeadClusters
from aplens.heads import ModelShape
from aplens.patterns import log_normalize
from aplens.scenarios import Scenarios
from aplens.style import to_svg
from aplens.views import View, show_clusters, show_heads, show_in_circuitsvis
from aplens.views.apart import count_tasks, tell_apart
from aplens.views.embed import to_json
from aplens.views.heads_view import _build_heads_view, quantize
from aplens.views.pixels import draw_pattern
from aplens.views.typical import find_typical_patterns

HOSTILE = [
    "</script><script>document.title='pwned';window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "\"'`><iframe srcdoc=x>",
    "-->",
    "<!--",
    "]]>",
    "${alert(1)}",
    "{{7*7}}{% raise %}",
    "&lt;&quot;&#39;",
    "\\u003cscript\\u003e",
    "\u202eevil\u2066",
    "nul\x00\x1b[31m",
    "\r\n\t line",
    "\u2028\u2029\u200b\ufeff\u00a0\u3000",
    "half \ud83d",
    "👩‍💻🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "שלום",
    "変数",
    "x" * 400,
    "",
]


class FakeTokenizer:
    """Writes token `i` as the `i`-th hostile text."""

    padding_side = "right"

    def decode(self, ids):
        return " ".join(HOSTILE[index % len(HOSTILE)] for index in ids)


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of each."""

    def __init__(self, document):
        super().__init__()
        self.elements = []
        self.feed(document)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))

    def handle_data(self, data):
        if self.elements:
            self.elements[-1][2].append(data)

    def all(self, tag):
        return [(attributes, "".join(t)) for name, attributes, t in self.elements if name == tag]

    def text_of(self, id_):
        return next(
            "".join(text) for _, attributes, text in self.elements if attributes.get("id") == id_
        )

    @property
    def tags(self):
        return [tag for tag, *_ in self.elements]


def data_of(view):
    return json.loads(Page(view.html).text_of("data"))


def attention_of(view, what="attention"):
    """The quantized lower triangles that a view carries."""
    packed = Page(view.html).text_of(what)
    return np.frombuffer(gzip.decompress(base64.b64decode(packed)), dtype=np.uint8)


def heads_view(cells, tokens=None, labels=None, habit=None, **facts):
    n_heads, n_tokens, _ = cells.shape
    return _build_heads_view(
        labels or [(f"L{i}H0", f"#{i + 1} · induction") for i in range(n_heads)],
        cells,
        tokens or [f"t{i}" for i in range(n_tokens)],
        positions=range(n_tokens),
        title="Attention",
        note="note",
        habit=habit,
        **facts,
    )


def make_ranking(*heads):
    scores = np.arange(len(heads), 0.0, -1)[:, None]
    return HeadRanking.from_values(
        [Head(*head) for head in heads], scores, ModelShape("tiny", 3, 4)
    )


@pytest.fixture
def spoken(any_model, monkeypatch):
    """A model whose tokenizer writes hostile texts."""
    monkeypatch.setattr(any_model, "tokenizer", FakeTokenizer(), raising=False)
    return any_model


# What text can do


def test_hidden_characters_get_marks_and_visible_ones_stay():
    assert displayable_token(" a\n\tb") == "·a↵→b"
    assert displayable_token("\x00\x1b\r\x7f") == "␀␛␍␡"
    assert displayable_token("\u202e\u200b") == r"\u{202E}\u{200B}"
    assert displayable_token("\ud83d") == r"\u{D83D}"
    for text in ("👩‍💻", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "שלום", "変数", "é", "e\u0301", "<b>&amp;</b>"):
        assert displayable_token(text) == text
    assert len(displayable_token("x" * 400)) == 24


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_displayed_text_has_nothing_invisible_and_can_be_written(text):
    for shown in (displayable(text), displayable_token(text)):
        shown.encode("utf-8")
        assert not re.search(
            "[\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069]", shown
        )
    assert " " not in displayable_token(text)


# Tokens that hold pieces of characters


class Pieces:
    """A tokenizer whose token `i` is the `i`-th of some pieces of UTF-8, as GPT-2's are."""

    padding_side = "right"

    def __init__(self, *pieces):
        self.pieces = [piece.encode() if isinstance(piece, str) else piece for piece in pieces]
        self.alphabet = bytes_to_unicode()

    def decode(self, ids):
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")

    def convert_ids_to_tokens(self, ids):
        return ["".join(self.alphabet[byte] for byte in self.pieces[i]) for i in ids]

    def texts(self):
        return token_texts(self, range(len(self.pieces)))


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        (["a", b"\xe6", b"\x97", b"\xa5", "b"], ["a", r"\xe6", r"\x97", r"\xa5", "b"]),
        # the end of one and the beginning of the next; whole ones beside a piece
        ([b"\xe6\x97", b"\xa5\xe6", b"\x97\xa5"], [r"\xe6\x97", r"\xa5\xe6", r"\x97\xa5"]),
        ([" 日".encode() + b"\xd8", b"\xb9!"], [r" 日\xd8", r"\xb9!"]),
        # the text's own U+FFFD is a character like any other
        (["�", b"\xef\xbf", b"\xbd"], ["�", r"\xef\xbf", r"\xbd"]),
        ([], []),
    ],
)
def test_a_piece_of_a_character_is_shown_as_its_bytes(pieces, texts):
    assert Pieces(*pieces).texts() == texts


@given(st.text(min_size=1, max_size=12), st.data())
def test_no_piece_is_shown_as_the_replacement_character(text, data):
    written = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(written) - 1)))))
    pieces = [written[i:j] for i, j in zip([0, *cuts], [*cuts, len(written)], strict=True) if i < j]
    assert len(Pieces(*pieces).texts()) == len(pieces)
    assert readable_text(Pieces(*pieces), range(len(pieces))) == text
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(pieces))] * 2)))
    inside = Pieces(*pieces[start:stop])
    for shown in ("".join(inside.texts()), readable_text(inside, range(stop - start))):
        assert "�" not in shown or "�" in text


def test_pieces_of_every_kind_of_tokenizer_are_shown():
    from scenario_helpers import byte_level_tokenizer
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    model = models.BPE(vocabulary | {"a": 256, "▁": 257}, [], byte_fallback=True)
    fallback = Tokenizer(model)
    fallback.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    for tokenizer in (
        byte_level_tokenizer(),
        PreTrainedTokenizerFast(tokenizer_object=fallback),
    ):
        ids = tokenizer("a日é", add_special_tokens=False)["input_ids"]
        shown = ["a", r"\xe6", r"\x97", r"\xa5", r"\xc3", r"\xa9"]
        assert token_texts(tokenizer, ids) == shown
        assert readable_text(tokenizer, ids) == "a日é"
        assert readable_text(tokenizer, ids[2:5]) == r"\x97\xa5\xc3"


def test_views_show_pieces_of_characters(any_model, monkeypatch):
    tokenizer = Pieces("a", b" \xe6", b"\x97", b"\xa5", "b")
    monkeypatch.setattr(any_model, "tokenizer", tokenizer, raising=False)
    view = show_heads(any_model, [4, 0, 1, 2, 3, 4, 1], "L0H0", max_tokens=6)
    assert data_of(view)["tokens"] == ["a", r"·\xe6", r"\x97", r"\xa5", "b", r"·\xe6"]
    scenarios = Scenarios(
        replace(scenario, prompt=(0, 1, 2, 3, 4, 1, 2)) for scenario in ragged_scenarios()
    )
    clusters = show_clusters(any_model, scenarios, "L0H0", mae=make_mae(), reducer="pca")
    captions = [axes.get_xlabel() for axes in clusters.axes if "scenario" in axes.get_xlabel()]
    assert {caption.splitlines()[-1] for caption in captions} == {r"a 日b \xe6\x97"}


@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=5))
def test_json_in_a_page_is_plain_and_reads_back(texts):
    written = to_json(texts)
    assert written.isascii()
    assert not set("<>&") & set(written)
    assert json.loads(written) == texts


FRAGMENTS = st.sampled_from([*HOSTILE, "</", "script", "<", ">", '"', "'", "\\", "&", "&lt;", "--"])
TEXTS = st.lists(st.one_of(FRAGMENTS, st.text(max_size=8)), max_size=6).map("".join)


@settings(max_examples=25, deadline=None)
@given(tokens=st.lists(TEXTS, min_size=2, max_size=4), label=TEXTS)
def test_no_text_breaks_out_of_a_view_or_its_frame(tokens, label):
    cells = softmax_patterns(1, n_tokens=len(tokens))
    plain = heads_view(cells)
    view = heads_view(cells, tokens, [("L0H0", displayable(label))])
    assert Page(view.html).tags == Page(plain.html).tags
    data = data_of(view)
    assert data["tokens"] == tokens
    assert data["labels"] == [" · ".join(part for part in ("L0H0", displayable(label)) if part)]
    ((frame, inside),) = Page(view._repr_html_()).all("iframe")
    assert Page(view._repr_html_()).tags == ["iframe"]
    assert frame["srcdoc"] == view.html
    assert inside == ""


def test_a_frame_may_run_scripts_only_where_the_view_has_any_and_never_reaches_the_notebook():
    heads = heads_view(softmax_patterns(1, n_tokens=4))
    still = View("t", "<p>", 100)
    for view, allowed in ((heads, "allow-scripts"), (still, "")):
        ((frame, _),) = Page(view._repr_html_()).all("iframe")
        assert frame["sandbox"] == allowed
        assert f"height:{view.height}px" in frame["style"]
        assert frame["title"] == view.title


def test_a_view_is_saved_whole_and_has_a_short_repr(tmp_path):
    view = heads_view(softmax_patterns(1, n_tokens=4))
    saved = view.save(tmp_path / "deep" / "heads.html")
    assert saved.read_text(encoding="utf-8") == view.html
    assert [entry.name for entry in saved.parent.iterdir()] == ["heads.html"]
    assert re.fullmatch(r"View\('Attention', \d+ kB\)", repr(view))


# How large, how exact


def test_quantizing_moves_nothing_by_more_than_half_a_step():
    cells = softmax_patterns(3, n_tokens=40)
    values = quantize(cells)
    rows, columns = np.tril_indices(40)
    error = np.abs(values / 255 - cells.numpy()[:, rows, columns]).max()
    assert 0.001 < error <= 1 / 510 + 1e-7


def test_ten_heads_of_256_tokens_stay_small():
    cells = softmax_patterns(10, n_tokens=256)  # more even than any real head's: packs badly
    view = heads_view(cells)
    assert len(attention_of(view)) == 10 * 256 * 257 // 2
    assert len(view.html) < 900_000
    assert len(view._repr_html_()) < 900_000
    as_numbers = len(json.dumps(cells.tolist()))
    carried = len(Page(view.html).text_of("attention"))
    assert carried < as_numbers / 25
    assert len(view.html) - carried < 50_000


def test_views_are_the_same_every_time():
    cells = softmax_patterns(2, n_tokens=8)
    assert heads_view(cells) == heads_view(cells)


# show_heads


def test_only_the_chosen_heads_are_shown_with_rank_and_template(tiny_model):
    tokens = torch.arange(1, 31)
    ranking = make_ranking((2, 1), (0, 3), (1, 0))
    view = show_heads(tiny_model, tokens, "L1H0, L2H1, L2H2", ranking=ranking)
    labels = data_of(view)["labels"]
    templates = "previous token|duplicate token|induction|first token|self|local|uniform|mixed"
    for label, start in zip(labels, ("L1H0 · #3 · ", "L2H1 · #1 · ", "L2H2 · "), strict=True):
        assert re.fullmatch(f"{re.escape(start)}({templates})", label)
    assert [text for _, text in Page(view.html).all("b")] == ["L1H0", "L2H1", "L2H2"]
    patterns = collect_patterns(tiny_model, tokens[None], [(1, 0), (2, 1), (2, 2)])
    rows, columns = np.tril_indices(30)
    shown = attention_of(view).reshape(3, -1) / 255
    np.testing.assert_allclose(shown, patterns.values[0].numpy()[:, rows, columns], atol=1 / 500)


def test_a_ranking_stands_for_its_six_best(any_model):
    heads = [(layer, head) for layer in (2, 0) for head in range(4)]
    ranking = make_ranking(*heads)
    for view in (
        show_heads(any_model, [1, 2, 3], ranking),
        show_heads(any_model, [1, 2, 3], ranking=ranking),
    ):
        starts = [label.split(" · ")[:2] for label in data_of(view)["labels"]]
        assert starts == [[str(Head(*head)), f"#{i + 1}"] for i, head in enumerate(heads[:6])]


def test_a_planted_template_is_named(any_model, monkeypatch):
    previous = torch.zeros(1, 1, 12, 12)
    previous[0, 0, range(1, 12), range(11)] = 1
    previous[0, 0, 0, 0] = 1
    monkeypatch.setattr(
        "aplens.views.heads_view.collect_patterns",
        lambda model, tokens, heads: AttentionPatterns(previous, heads),
    )
    view = show_heads(any_model, list(range(12)), "L0H0")
    assert data_of(view)["labels"] == ["L0H0 · previous token"]


def test_a_long_prompt_is_read_whole_and_its_last_tokens_shown_as_the_view_says(any_model):
    tokens = torch.arange(40)
    view = show_heads(any_model, tokens, "L1H1", max_tokens=25)
    assert "The last 25 of 40 tokens." in view.html
    data = data_of(view)
    assert data["tokens"] == [str(token) for token in range(15, 40)]
    assert data["positions"] == list(range(15, 40))
    whole = collect_patterns(any_model, tokens[None], "L1H1").values[0, 0].numpy()
    shown = whole[15:, 15:][np.tril_indices(25)]
    np.testing.assert_allclose(attention_of(view) / 255, shown, atol=1 / 500)
    np.testing.assert_allclose(data["before"], [whole[15:, :15].sum(-1)], atol=0.006)
    alone = show_heads(any_model, tokens, "L1H1", max_tokens=40)
    assert "The last" not in alone.html
    assert data_of(alone)["before"] is None


def test_prompts_come_as_ids_or_scenarios_and_tokens_as_the_tokenizer_writes_them(spoken):
    scenario = make_scenarios(1, n_tokens=12)[0]
    view = show_heads(spoken, scenario, "L0H0")
    assert data_of(view) == data_of(show_heads(spoken, list(scenario.prompt), "L0H0"))
    written = [displayable_token(FakeTokenizer().decode([token])) for token in scenario.prompt]
    assert data_of(view)["tokens"] == written


def test_what_cannot_be_shown_is_refused_before_the_model_runs(any_model, monkeypatch):
    def run(*args, **options):
        raise AssertionError("the model ran")

    show_heads(any_model, [1, 2], "L0H0")
    monkeypatch.setattr("aplens.views.heads_view.collect_patterns", run)
    tokens = [1, 2, 3]
    with pytest.raises(ValueError, match="no heads were chosen"):
        show_heads(any_model, tokens)
    with pytest.raises(ValueError, match="selection is empty"):
        show_heads(any_model, tokens, [])
    with pytest.raises(ValueError, match="layer 9 is out of range"):
        show_heads(any_model, tokens, "L9H0")
    for max_tokens in (0, 257):
        with pytest.raises(ValueError, match=f"max_tokens must be 1 to 256, got {max_tokens}"):
            show_heads(any_model, tokens, "L0H0", max_tokens=max_tokens)
    foreign = HeadRanking.from_values([Head(0, 0)], np.ones((1, 1)), ModelShape("other", 12, 12))
    for chosen in ({"ranking": foreign, "heads": "L0H0"}, {"heads": foreign}):
        with pytest.raises(ValueError, match=r"the ranking is of .*other"):
            show_heads(any_model, tokens, **chosen)
    with pytest.raises(ValueError, match="expected one prompt, got 2"):
        show_heads(any_model, [tokens, tokens], "L0H0")
    with pytest.raises(ValueError, match="tokenizer"):
        show_heads(any_model, "text", "L0H0")
    with pytest.raises(ValueError, match="65 tokens are too long"):
        show_heads(any_model, [1] * 65, "L0H0")
    with pytest.raises(ValueError, match=r"4 tokens for this AP-MAE, got 3: .*\"aplens-short\""):
        show_heads(any_model, tokens, "L0H0", mae=tiny_mae())
    with pytest.raises(ValueError, match="got 4"):
        show_heads(any_model, [1] * 9, "L0H0", mae=tiny_mae(), max_tokens=4)
    monkeypatch.setattr("aplens.views.choice._MOST_HEADS", 3)
    with pytest.raises(ValueError, match="12 heads are too many"):
        show_heads(any_model, tokens, [(layer, head) for layer in range(3) for head in range(4)])


def test_a_habit_is_what_the_ap_mae_expects_and_at_most_doubles_the_data(tiny_model):
    mae, tokens, heads = tiny_mae(), list(range(13)), "L0H1, L2H3"
    view = show_heads(tiny_model, tokens, heads, mae=mae)
    alone = show_heads(tiny_model, tokens, heads)
    assert (attention_of(view) == attention_of(alone)).all()
    attention = collect_patterns(tiny_model, [tokens], heads).prompt(0)
    expected = mae.expect(attention, None).numpy()[(slice(None), *np.tril_indices(13))]
    habit = attention_of(view, "habit").reshape(2, -1)
    np.testing.assert_allclose(habit / 255, expected, atol=1 / 500)
    carried, before = (len(Page(each.html).text_of("attention")) for each in (view, alone))
    assert len(Page(view.html).text_of("habit")) < 1.1 * before
    assert carried == before
    pictures = [attributes.get("data-shows") for attributes, _ in Page(view.html).all("canvas")]
    assert pictures == ["attention", "habit", "difference"] * 2 + [None]  # the large one


def test_of_a_prompt_longer_than_the_ap_mae_the_model_reads_the_last_tokens(spoken):
    tokens = list(range(40))
    view = show_heads(spoken, tokens, "L1H1", mae=tiny_mae())
    note = (
        "The last 16 of 40 tokens, the most that this AP-MAE takes; the model read nothing before"
    )
    assert note in view.html
    alone = show_heads(spoken, tokens[24:], "L1H1", mae=tiny_mae())
    assert (attention_of(view) == attention_of(alone)).all()
    assert (attention_of(view, "habit") == attention_of(alone, "habit")).all()
    assert data_of(view)["positions"] == tokens[24:]
    shorter = show_heads(spoken, tokens, "L1H1", mae=tiny_mae(), max_tokens=9)
    assert "The last 9 of 40 tokens; the model" in shorter.html
    spoken.tokenizer.bos_token_id = 0
    view = show_heads(spoken, tokens, "L1H1", mae=tiny_mae())
    assert "BOS and the last 15 of 40 tokens, the most" in view.html
    assert data_of(view)["positions"] == [0, *tokens[25:]]


# Pictures of patterns


def pixels_of(address):
    from PIL import Image

    data = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(BytesIO(data)).convert("RGBA"))


def test_pictures_have_a_pixel_a_cell_in_the_colours_of_the_figures():
    from matplotlib import colormaps

    pattern = np.tril(np.linspace(0, 1, 16).reshape(4, 4))
    pattern[2, 1] = np.nan
    pixels = pixels_of(draw_pattern(pattern))
    assert pixels.shape == (4, 4, 4)
    above = ~np.tri(4, dtype=bool)
    assert (pixels[above, 3] == 0).all()
    assert (pixels[~above, 3] == 255).all()
    assert tuple(pixels[2, 1, :3]) == (0xC4, 0xC8, 0xCC)
    seen = ~above & ~np.isnan(pattern)
    expected = np.asarray(colormaps["magma"](pattern[seen]))[:, :3] * 255
    assert np.abs(pixels[seen][:, :3] - expected).max() < 4


# show_clusters


def ragged_scenarios(n=24):
    short, long = make_scenarios(n, n_tokens=12), make_scenarios(n, n_tokens=20)
    return Scenarios(long[i] if i % 3 else short[i] for i in range(n))


def observations_of(scenarios):
    """Observations in which every head has two clear kinds of patterns."""
    made = make_observations(n=len(scenarios), n_layers=3, n_heads=4)
    table = made.table.assign(
        file=scenarios.files, line=[s.line for s in scenarios], target=scenarios.targets().numpy()
    )
    return Observations(table, made.heads, made.embeddings, model=ModelShape("tiny", 3, 4))


def test_clusters_have_their_mean_and_their_most_typical_patterns(tiny_model, monkeypatch):
    scenarios = ragged_scenarios()
    observations = observations_of(scenarios)
    head = Head(1, 2)
    place = observations.heads.index(head)
    seen = observations.embeddings[:, place], observations.table["correct"].to_numpy()
    monkeypatch.setattr("aplens.views.typical._observe_head", lambda *_: seen)
    clusters = find_typical_patterns(tiny_model, scenarios, head, mae=make_mae(), reducer="pca")
    labels = HeadClusters("pca").fit(observations.embeddings[:, [place]]).labels_[:, 0]
    assert {cluster.label: cluster.members.tolist() for cluster in clusters} == {
        label: np.flatnonzero(labels == label).tolist() for label in np.unique(labels)
    }
    sizes = [len(cluster.members) for cluster in clusters if cluster.label >= 0]
    assert len(sizes) > 1
    assert sizes == sorted(sizes, reverse=True)
    for cluster in clusters:
        patterns = [
            log_normalize(collect_patterns(tiny_model, [scenarios[i].prompt], head).prompt(0)[0])
            for i in cluster.members
        ]
        long = torch.stack([pattern for pattern in patterns if len(pattern) == 20])
        corner = torch.stack([pattern[:12, :12] for pattern in patterns])
        np.testing.assert_allclose(cluster.mean[12:], long.mean(0)[12:], atol=1e-5)
        np.testing.assert_allclose(cluster.mean[:12, :12], corner.mean(0), atol=1e-5)
        rest = [
            log_normalize(collect_patterns(tiny_model, [scenarios[i].prompt], head).prompt(0)[0])
            for i in range(24)
            if i not in cluster.members
        ]
        others = torch.stack([pattern[:12, :12] for pattern in rest]).mean(0)
        np.testing.assert_allclose(cluster.difference[:12, :12], corner.mean(0) - others, atol=1e-5)
        assert cluster.accuracy == observations.table["correct"][cluster.members].mean()
        rows = observations.embeddings[cluster.members, place].astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        nearest = cluster.members[np.argsort(-(rows @ rows.mean(0)))[:3]]
        assert [index for index, _ in cluster.typical] == nearest.tolist()
        for index, pattern in cluster.typical:
            at = cluster.members.tolist().index(index)
            np.testing.assert_allclose(pattern, patterns[at], atol=1e-5)


def test_clusters_say_what_tells_them_apart():
    inside = np.array([True] * 6 + [False] * 4)
    facts = count_tasks(["if {x}"] * 5 + ["for"] * 5)
    assert tell_apart(facts, inside) == ["for 17% (others 100%)", "if {x} 83% (others 0%)"]
    facts = {
        "length {:.0f}": np.array([10.0, 12] * 3 + [30, 30, 30, 31]),
        "alike {:.2f}": np.array([0.30, 0.30, 0.30, 0.30, 0.30, 0.30, 0.31, 0.31, 0.31, 0.31]),
        "by chance {:.2f}": np.array([0.0, 1, 0, 1, 0, 1, 0, 1, 0, 1]),
    }
    assert tell_apart(facts, inside) == ["length 11 (others 30)"]
    assert tell_apart(facts, np.ones(10, dtype=bool)) == []
    assert count_tasks(["if"] * 3) == {}


def test_a_view_of_clusters_says_what_observing_finds(any_model, tmp_path):
    from aplens import observe

    scenarios, mae = ragged_scenarios(), make_mae()
    figure = show_clusters(any_model, scenarios, "L1H2", mae=mae, reducer="pca")
    observed = observe(any_model, scenarios, mae, tmp_path)
    clusters = find_typical_patterns(any_model, scenarios, Head(1, 2), mae=mae, reducer="pca")
    assert sum(len(cluster.members) for cluster in clusters) == 24
    right = sum(len(cluster.members) * cluster.accuracy for cluster in clusters)
    assert right == pytest.approx(observed.table["correct"].sum())
    titles = [row.get_suptitle() for row in figure.subfigs[:-1]]  # the last holds the colours
    for number, (cluster, title) in enumerate(zip(clusters, titles, strict=True), start=1):
        size = len(cluster.members)
        name = "In no cluster" if cluster.label < 0 else f"Cluster {number}"
        assert title.startswith(f"{name} · {size} scenarios ({size / 24:.0%}) · ")
        assert f"{cluster.accuracy:.0%} answered correctly" in title
        assert all(fact in title.replace("\n", " ") for fact in cluster.apart)
    assert f"{sum(cluster.label >= 0 for cluster in clusters)} cluster" in figure.get_suptitle()
    again = show_clusters(any_model, scenarios, "L1H2", mae=mae, reducer="pca")
    assert to_svg(figure) == to_svg(again)


@pytest.mark.parametrize(
    ("labels", "columns"), [([0] * 24, 4), ([0] * 12 + [1] * 10 + [-1] * 2, 5)]
)
def test_a_figure_of_clusters_has_a_row_each_and_words_that_fit(
    tiny_model, monkeypatch, labels, columns
):
    def fit(self, embeddings):
        self.labels_ = np.array(labels)[:, None]
        return self

    monkeypatch.setattr(HeadClusters, "fit", fit)
    last_text = "…codecs.IncrementalDecoder(↵    costs $5_ or $6"
    monkeypatch.setattr("aplens.views.clusters_view.last_text", lambda *_: last_text)
    scenarios = make_scenarios(24, n_tokens=12)
    figure = show_clusters(tiny_model, scenarios, "L0H0", mae=make_mae(), reducer="pca")
    *rows, _ = figure.subfigs
    clusters = find_typical_patterns(
        tiny_model, scenarios, Head(0, 0), mae=make_mae(), reducer="pca"
    )
    assert len(rows) == len(clusters)
    to_svg(figure)  # which lays it out
    for row, cluster in zip(rows, clusters, strict=True):
        assert len(row.axes) == columns
        shown = [axes.images[0].get_array() for axes in row.axes if axes.images]
        patterns = [cluster.mean, *(pattern for _, pattern in cluster.typical)]
        if columns == 5:
            difference = shown.pop(1)
            np.testing.assert_allclose(difference.filled(0), np.tril(cluster.difference))
        for drawn, pattern in zip(shown, patterns, strict=True):
            np.testing.assert_allclose(drawn.filled(0), np.tril(pattern))
        boxes = [axes.xaxis.label.get_window_extent() for axes in row.axes]
        assert not any(box.overlaps(other) for box, other in pairwise(boxes))
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)
        caption = row.axes[columns - 3].get_xlabel()
        assert "".join(caption.split()).endswith("".join(last_text.split()))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short", "short"),
        (
            "a beginning left out, what is shown of it, and the end",
            "…left out, what is shown of it, and the end",
        ),
        ("x" * 60, "…" + "x" * 44),
        (
            "out of sight\nline one is long\n\tthe last line here",
            "…sight↵line one is long↵→the last line here",
        ),
    ],
)
def test_the_end_of_a_prompt_begins_with_a_word_if_it_can(text, shown):
    assert last_text(SimpleNamespace(tokenizer=Pieces(text)), [0]) == shown


def test_hostile_prompts_are_drawn_in_clusters(spoken):
    scenarios = ragged_scenarios()
    figure = show_clusters(spoken, scenarios, "L0H0", mae=make_mae(), reducer="pca")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert any("script" in axes.get_xlabel() for axes in figure.axes)


def test_wrong_clusterings_are_refused_before_the_model_runs(any_model, monkeypatch):
    scenarios, mae = ragged_scenarios(), make_mae()
    monkeypatch.setattr("aplens.views.typical.stream_patterns", None)
    monkeypatch.setattr("aplens.views.typical.collect_patterns", None)
    with pytest.raises(ValueError, match="expected one head, got 2: L0H0, L1H1"):
        show_clusters(any_model, scenarios, "L0H0, L1H1", mae=mae)
    with pytest.raises(ValueError, match="reducer must be one of"):
        show_clusters(any_model, scenarios, "L0H0", mae=mae, reducer="tsne")
    with pytest.raises(ValueError, match="at least 10 scenarios"):
        show_clusters(any_model, scenarios[:5], "L0H0", mae=mae)


# In a real browser


def open_page(chromium, path, **options):
    """A page with what it logged and what it asked the network for."""
    page = chromium.new_page(viewport={"width": 900, "height": 1000}, **options)
    logged, requested = [], []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_load_state("networkidle")
    return page, logged, [url for url in requested if not url.startswith("data:")]


def colors_of(element):
    """Every pixel of a screenshot as RGB."""
    from PIL import Image

    return np.asarray(Image.open(BytesIO(element.screenshot())).convert("RGB")).reshape(-1, 3)


def wait_until_drawn(frame, head=0):
    frame.wait_for_selector(f"#pattern[data-head='{head}']", timeout=60_000)


def eventually(happens, seconds=20):
    """Whether something happens soon: a busy machine paints late."""
    until = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def is_drawn(element, n_colors):
    """Whether an element shows more than a white box."""
    pixels = colors_of(element)
    dark = (pixels.sum(axis=-1) < 500).mean()
    return len(np.unique(pixels, axis=0)) > n_colors and dark > 0.01


def assert_drawn(element, n_colors=20):
    assert eventually(lambda: is_drawn(element, n_colors))


@pytest.fixture
def three_heads(spoken):
    return show_heads(spoken, list(range(20)), "L0H0, L1H1, L2H2")


@pytest.mark.browser
def test_views_draw_alone_without_network_or_errors_and_hostile_tokens_do_not_run(
    chromium, three_heads, tmp_path
):
    path = three_heads.save(tmp_path / "heads.html")
    page, logged, requested = open_page(chromium, path)
    wait_until_drawn(page)
    for canvas in page.locator("#heads canvas").all():
        assert_drawn(canvas, n_colors=8)
    assert_drawn(page.locator("#pattern canvas:visible"))
    assert page.title() == three_heads.title
    assert page.evaluate("window.pwned") is None
    assert logged == []
    assert requested == [path.as_uri()]
    page.close()


@pytest.mark.browser
def test_views_draw_in_frames_of_an_exported_notebook(chromium, three_heads, tmp_path):
    output = (
        f'<div class="jp-OutputArea-output jp-RenderedHTMLCommon">{three_heads._repr_html_()}</div>'
    )
    path = tmp_path / "notebook.html"
    path.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><title>notebook</title>{output * 2}<p id="end">end',
        encoding="utf-8",
    )
    page, logged, requested = open_page(chromium, path)
    frames = page.frames[1:]
    assert len(frames) == 2
    wait_until_drawn(frames[0])
    for frame in page.locator("iframe").all():
        assert frame.bounding_box()["width"] > 800
        assert_drawn(frame)
    needed = frames[0].evaluate("document.documentElement.scrollHeight")
    assert needed <= three_heads.height  # nothing of the pattern is out of sight
    assert page.title() == "notebook"
    assert all(frame.evaluate("window.pwned") is None for frame in page.frames)
    assert page.locator("#end").is_visible()
    assert logged == []
    assert {url for url in requested if url != "about:srcdoc"} == {path.as_uri()}
    page.close()


@pytest.mark.browser
def test_circuitsvis_draws_the_heads_offline_and_hostile_tokens_do_not_run(
    chromium, tiny_model, monkeypatch, tmp_path
):
    monkeypatch.setattr(tiny_model, "tokenizer", FakeTokenizer(), raising=False)
    tokens = list(range(len(HOSTILE)))
    shown = show_in_circuitsvis(tiny_model, torch.tensor(tokens), "L1H2, L0H3")
    path = tmp_path / "circuitsvis.html"
    path.write_text(f"<!DOCTYPE html><meta charset='utf-8'>{shown.local_src}", encoding="utf-8")
    page, _, requested = open_page(chromium, path)
    page.get_by_text("L1H2").first.wait_for(timeout=60_000)
    assert page.get_by_text("L0H3").count() >= 1
    assert_drawn(page.locator("canvas").first)
    assert page.evaluate("window.pwned") is None
    assert requested == [path.as_uri()]
    page.close()


@pytest.mark.browser
def test_pointing_shows_a_head_large_and_clicking_keeps_it(chromium, three_heads, tmp_path):
    page, logged, _ = open_page(chromium, three_heads.save(tmp_path / "heads.html"))
    wait_until_drawn(page)
    labels = data_of(three_heads)["labels"]
    large = page.locator("#pattern canvas:visible")
    shown = [colors_of(large)]
    assert large.bounding_box()["width"] > 400

    page.locator("#heads button").nth(1).hover()
    wait_until_drawn(page, 1)
    assert page.locator("#shown").inner_text().startswith(labels[1])
    shown.append(colors_of(large))
    page.locator("h1").hover()
    wait_until_drawn(page, 0)

    page.locator("#heads button").nth(2).click()
    page.locator("h1").hover()
    wait_until_drawn(page, 2)
    shown.append(colors_of(large))
    assert large.count() == 1
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert shown[one].shape != shown[other].shape or (shown[one] != shown[other]).any()

    box = large.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.6 * box["height"])
    assert eventually(lambda: (colors_of(large) != shown[2]).any())  # the tooltip
    assert page.locator("#heads button[aria-pressed=true] b").inner_text() == "L2H2"
    assert page.locator("#query caption").all_inner_texts() == ["Attends most to"]  # no AP-MAE
    assert logged == []
    page.close()


N_TOKENS, SOME_HEADS = 13, ("L0H1", "L2H3", "L1H0")


@pytest.fixture
def with_habit(any_model, tmp_path):
    """A view with habits in a file, and what it shows: attention and habit by head."""
    mae, tokens = tiny_mae(), list(range(N_TOKENS))
    view = show_heads(any_model, tokens, SOME_HEADS, mae=mae)
    attention = collect_patterns(any_model, [tokens], SOME_HEADS).prompt(0)
    habit = mae.expect(attention, None)
    return view.save(tmp_path / "habit.html"), attention.numpy(), habit.numpy()


def listed(page, caption):
    """The keys in one of the query's lists, each with its numbers."""
    rows = page.locator(f"#query table:has(caption:text-is('{caption}')) tr:has(td)").all()
    cells = [row.locator("td").all_inner_texts() for row in rows]
    if cells == [["none by 0.01 or more"]]:
        return {}
    return {int(re.search(r"\((\d+)\)", key)[1]): list(map(float, rest)) for key, *rest in cells}


def assert_lists_the_largest(found, values, least):
    """The keys are those with the eight largest values, in order, as far as rounding goes."""
    rounding = 2 / 255
    certain, possible = ((values >= least + error).sum() for error in (rounding, -rounding))
    assert min(8, certain) <= len(found) <= min(8, possible)
    shown, others = values[list(found)], np.delete(values, list(found))
    assert (np.diff(shown) <= rounding).all()
    assert len(found) < 8 or shown.min() >= others.max(initial=0) - rounding


def assert_shows_query(page, query, attention, habit):
    assert f"({query})" in page.locator("#query p").inner_text()
    attention, habit = attention[query, : query + 1], habit[query, : query + 1]
    most, beyond = listed(page, "Attends most to"), listed(page, "Beyond its habit")
    assert_lists_the_largest(most, attention, 2 / 255)
    assert_lists_the_largest(beyond, attention - habit, 3 / 255)
    for key, numbers in (most | beyond).items():
        np.testing.assert_allclose(numbers, [attention[key], habit[key]], atol=0.0075)


@pytest.mark.browser
def test_a_query_lists_its_keys_and_those_beyond_its_habit(chromium, with_habit):
    path, attention, habit = with_habit
    page, logged, _ = open_page(chromium, path)
    wait_until_drawn(page)
    assert_shows_query(page, N_TOKENS - 1, attention[0], habit[0])
    words = page.locator("#tokens span")
    for query in (0, 5, 9):
        words.nth(query).hover()
        assert_shows_query(page, query, attention[0], habit[0])
    marked = words.evaluate_all(
        "words => words.flatMap((word, i) => word.classList.contains('beyond') ? i : [])"
    )
    assert set(marked) == set(listed(page, "Beyond its habit"))
    page.locator("h1").hover()
    assert_shows_query(page, N_TOKENS - 1, attention[0], habit[0])

    # the row of the large pattern under the pointer is the row that is framed
    box = page.locator("#pattern canvas:visible").bounding_box()
    seen = set()
    for place in range(12, 80, 4):
        x, y = box["x"] + box["width"] * 0.7, box["y"] + box["height"] * place / 100
        page.mouse.move(x, y)
        query = int(re.search(r"\((\d+)\)", page.locator("#query p").inner_text())[1])
        assert_shows_query(page, query, attention[0], habit[0])
        if page.locator("#row").is_visible():
            frame = page.locator("#row").bounding_box()
            assert frame["y"] <= y <= frame["y"] + frame["height"]
            seen.add(query)
    assert len(seen) > N_TOKENS / 2
    assert logged == []
    page.close()


@pytest.mark.browser
def test_rows_pointed_at_are_those_that_are_drawn(chromium, tmp_path):
    cells = torch.zeros(1, 12, 12)
    cells[0, :, 0] = 1
    cells[0, 7, :7] = 1  # a line of full colour
    path = heads_view(cells).save(tmp_path / "line.html")
    page, *_ = open_page(chromium, path)
    wait_until_drawn(page)
    page.locator("#tokens span").nth(7).hover()
    frame = page.locator("#row").bounding_box()
    page.locator("#tokens span").nth(0).hover()

    def dark_share():
        from PIL import Image

        clip = {"x": frame["x"] + 3, "y": frame["y"] + 3}
        clip |= {"width": frame["width"] * 0.5, "height": frame["height"] - 6}
        shot = page.screenshot(clip=clip)
        pixels = np.asarray(Image.open(BytesIO(shot)).convert("RGB"))
        return (np.abs(pixels.astype(int) - (0, 48, 143)).max(-1) < 12).mean()

    assert eventually(lambda: dark_share() > 0.95)
    page.close()


@pytest.mark.browser
def test_a_query_is_kept_by_a_click_and_let_go_by_another_or_escape(chromium, with_habit):
    page, logged, _ = open_page(chromium, with_habit[0])
    wait_until_drawn(page)
    words, title = page.locator("#tokens span"), page.locator("#query p")
    for let_go in (lambda: words.nth(4).click(), lambda: page.keyboard.press("Escape")):
        words.nth(4).click()
        words.nth(8).hover()
        assert title.inner_text() == "Query 4 (4) · kept"
        assert page.locator("#row").is_visible()
        let_go()
        words.nth(8).hover()
        assert title.inner_text() == "Query 8 (8)"
    words.nth(4).click()
    page.locator("#heads button").nth(1).click()  # another head, the same query
    wait_until_drawn(page, 1)
    assert title.inner_text() == "Query 4 (4) · kept"
    assert_shows_query(page, 4, with_habit[1][1], with_habit[2][1])
    words.nth(6).click()
    assert title.inner_text() == "Query 6 (6) · kept"
    assert logged == []
    page.close()


@pytest.mark.browser
def test_a_token_that_is_searched_for_is_marked_and_kept(chromium, tmp_path):
    tokens = ["The", "·sep", "arator", "·is", "·the", "·Sep", "arator", "."]
    path = heads_view(softmax_patterns(2, n_tokens=8), tokens).save(tmp_path / "find.html")
    page, logged, _ = open_page(chromium, path)
    wait_until_drawn(page)
    found, title = page.locator("#found"), page.locator("#query p")
    page.locator("#find").fill("the sep")
    assert found.inner_text() == "2 found"
    marked = page.locator("#tokens .found").all_inner_texts()
    assert marked == ["The", "·sep", "·the", "·Sep"]
    page.locator("#find").fill("separator")
    for place, key in (("1 of 2", 2), ("2 of 2", 6), ("1 of 2", 2)):
        page.keyboard.press("Enter")
        assert found.inner_text() == place
        assert title.inner_text() == f"Query arator ({key}) · kept"
    page.keyboard.press("ArrowRight")  # in the text
    assert page.locator("#heads button[aria-pressed=true] b").inner_text() == "L0H0"
    page.locator("#find").fill("none such")
    assert found.inner_text() == "none found"
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    assert (found.inner_text(), page.locator("#find").input_value()) == ("", "")
    page.keyboard.press("ArrowUp")  # back in the view
    assert title.inner_text() == "Query ·sep (1) · kept"
    assert logged == []
    page.close()


@pytest.mark.browser
def test_all_heads_share_one_scale_or_have_their_own(chromium, tmp_path):
    cells = torch.zeros(2, 9, 9)
    cells[:, :, 0] = 1
    cells[0, 5:, 4], cells[1, 5:, 4] = 0.8, 0.2
    page, *_ = open_page(chromium, heads_view(cells).save(tmp_path / "scale.html"))
    wait_until_drawn(page)
    read = """canvas => [...canvas.getContext("2d").getImageData(4, 6, 1, 1).data].slice(0, 3)"""

    def colors():
        return [canvas.evaluate(read) for canvas in page.locator("#heads canvas").all()]

    most, less = colors()
    assert most == [0, 48, 143]
    assert less == [191, 203, 227]  # a quarter of it, as attention is
    assert page.locator("#full").inner_text() == "0.80 or more"
    page.locator("#own").check()
    assert colors() == [[0, 48, 143]] * 2
    page.locator("#heads button").nth(1).click()
    wait_until_drawn(page, 1)
    assert page.locator("#full").inner_text() == "0.20 or more"
    assert page.locator("#cells canvas").evaluate(read) == [0, 48, 143]
    word = page.locator("#tokens span").nth(4)  # as the last query attends to it
    style = word.evaluate("word => [getComputedStyle(word).backgroundColor, word.style.color]")
    assert style == ["rgb(0, 48, 143)", "rgb(255, 255, 255)"]
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize(("n_tokens", "step"), [(20, 1), (256, 6)])
def test_labels_at_the_axes_do_not_touch_and_say_when_some_are_missing(
    chromium, tmp_path, n_tokens, step
):
    tokens = [f"·token{i}" for i in range(n_tokens)]
    view = heads_view(softmax_patterns(1, n_tokens=n_tokens), tokens)
    page, *_ = open_page(chromium, view.save(tmp_path / "labels.html"))
    page.set_viewport_size({"width": 1280, "height": 900})
    wait_until_drawn(page)
    for axis, place, length in (("queries", "y", "height"), ("keys", "x", "width")):
        labels = page.locator(f"#{axis} span")
        assert eventually(lambda labels=labels: labels.count() == -(-n_tokens // step))
        assert labels.last.inner_text() == f"·token{n_tokens - 1} ({n_tokens - 1})"
        boxes = [label.bounding_box() for label in labels.all()]
        for one, other in pairwise(boxes):
            assert one[place] + one[length] <= other[place] + 0.5
        clipped = labels.evaluate_all(
            "labels => labels.filter(l => l.scrollWidth > l.clientWidth + 1"
            " || l.scrollHeight > l.clientHeight + 1).length"
        )
        assert clipped == 0
    assert (f"One token in {step} is named" in page.locator("#axes").inner_text()) == (step > 1)
    page.close()


@pytest.mark.browser
def test_attention_before_the_tokens_shown_and_of_a_cell_is_told(chromium, any_model, tmp_path):
    tokens = list(range(30))
    whole = collect_patterns(any_model, [tokens], "L1H1").values[0, 0]
    view = show_heads(any_model, tokens, "L1H1", max_tokens=10)
    page, *_ = open_page(chromium, view.save(tmp_path / "cut.html"))
    wait_until_drawn(page)
    page.locator("#tokens span").nth(4).click()
    title, before = page.locator("#query p").all_inner_texts()
    assert title == "Query 24 (24) · kept"
    assert float(before.split()[-1]) == pytest.approx(whole[24, :20].sum().item(), abs=0.006)
    box = page.locator("#cells").bounding_box()
    page.mouse.move(box["x"] + 0.25 * box["width"], box["y"] + 0.75 * box["height"])
    query, key, value = page.locator("#tip").inner_text().split("\n")
    assert (query, key) == ("query 27 (27)", "key 22 (22)")
    assert float(value.split()[-1]) == pytest.approx(whole[27, 22].item(), abs=0.008)
    page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
    assert page.locator("#tip").is_hidden()  # no query attends to later keys
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [560, 1280])
def test_every_view_fits_its_width(chromium, three_heads, tmp_path, width):
    page, *_ = open_page(chromium, three_heads.save(tmp_path / "heads.html"))
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [shown.bounding_box() for shown in page.locator("figure, #cells").all()]
    assert boxes
    assert all(box["x"] + box["width"] <= width for box in boxes)
    page.close()


@pytest.mark.browser
def test_arrow_keys_go_through_heads_and_queries(chromium, with_habit):
    path, attention, habit = with_habit
    page, logged, _ = open_page(chromium, path)
    wait_until_drawn(page)
    assert "← → head, ↑ ↓ query, Esc" in page.locator(".note").inner_text()
    pressed = page.locator("#heads button[aria-pressed=true] b")
    page.keyboard.press("Tab")
    style = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert (page.evaluate("document.activeElement.id"), style) == ("view", "solid")
    for key, head in (("Right", 1), ("Right", 2), ("Right", 2), ("Left", 1)):
        page.keyboard.press(f"Arrow{key}")
        wait_until_drawn(page, head)
        assert eventually(lambda head=head: pressed.inner_text() == SOME_HEADS[head])
    for key, query in (("Up", 11), ("Up", 10), ("Down", 11), ("Down", 12), ("Down", 12)):
        page.keyboard.press(f"Arrow{key}")
        assert_shows_query(page, query, attention[1], habit[1])
        assert "kept" in page.locator("#query p").inner_text()
    page.keyboard.press("Tab")  # to the first head; the arrows take the focus along
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.querySelector('b').textContent") == SOME_HEADS[2]
    assert logged == []
    page.close()


@pytest.mark.browser
def test_pictures_show_attention_habit_and_their_difference(chromium, with_habit):
    path, attention, habit = with_habit
    page, *_ = open_page(chromium, path)
    wait_until_drawn(page)
    read = """canvas => [canvas.width, ...canvas.getContext("2d")
        .getImageData(0, 0, canvas.width, canvas.height).data]"""
    for head, button in enumerate(page.locator("#heads button").all()):
        drawn = {}
        for canvas in button.locator("canvas").all():
            side, *data = canvas.evaluate(read)
            pixels = np.reshape(data, (side, side, 4))[..., :3].astype(int)
            drawn[canvas.get_attribute("data-shows")] = pixels
        assert drawn["attention"].shape == (N_TOKENS, N_TOKENS, 3)
        for what, values in (("attention", attention[head]), ("habit", habit[head])):
            whiteness = drawn[what][..., 0][np.tril_indices(N_TOKENS)]
            order = np.argsort(values[np.tril_indices(N_TOKENS)])
            assert np.diff(whiteness[order]).max() <= 3  # the more attention, the darker
        red, _, blue = np.moveaxis(drawn["difference"], -1, 0)
        difference = attention[head] - habit[head]
        assert (blue > red)[difference > 0.02].all()  # teal
        assert (red > blue)[difference < -0.02].all()  # brown
        assert (drawn["difference"][np.triu_indices(N_TOKENS, 1)] == 255).all()
    scale = page.locator("#scale").inner_text()
    least, most = re.search(r"−([\d.]+) or less\s+\+([\d.]+) or more", scale).groups()
    assert least == most
    page.close()


CONTRASTS = """() => {
  const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = (rgb) => [0.2126, 0.7152, 0.0722]
    .reduce((sum, weight, i) => sum + weight * channel(Number(rgb[i])), 0);
  const read = (color) => color.match(/[\\d.]+/g);
  const behind = (element) => {
    const rgb = read(getComputedStyle(element).backgroundColor);
    return rgb.length < 4 || rgb[3] > 0 ? rgb : behind(element.parentElement);
  };
  const words = [...document.querySelectorAll("h1, p, h2, b, span, caption, th, td")]
    .filter((element) => element.textContent.trim());
  return words.map((element) => {
    const [a, b] = [light(read(getComputedStyle(element).color)), light(behind(element))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  });
}"""


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(560, "dark"), (1280, "light")])
def test_habits_are_legible_in_both_schemes_and_fit_narrow_and_wide(
    chromium, with_habit, width, scheme
):
    page, *_ = open_page(chromium, with_habit[0], color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    wait_until_drawn(page)
    for query in (2, 12):
        page.locator("#tokens span").nth(query).click()
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 40
        assert min(contrasts) > 4.5
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    pattern, query = (page.locator(each).bounding_box() for each in ("#pattern", "#query"))
    if width == 560:  # the lists stand above the pattern, else beside it
        assert query["y"] + query["height"] <= pattern["y"]
    else:
        assert query["x"] >= pattern["x"] + pattern["width"]
    page.close()


@pytest.mark.browser
def test_even_a_script_that_got_in_could_not_run_or_fetch(chromium, three_heads, tmp_path):
    page, *_ = open_page(chromium, three_heads.save(tmp_path / "heads.html"))
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.pwned = 1';"
        "document.head.append(s)"
    )
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("fetch('data:text/plain,x').then(() => 'got', () => 'refused')") == (
        "refused"
    )
    page.close()


@pytest.mark.browser
def test_ten_heads_of_256_tokens_are_drawn_soon(chromium, tmp_path):
    torch.manual_seed(0)
    scores = 6 * torch.randn(10, 256, 256)  # about as peaked as real heads
    above = torch.ones(256, 256, dtype=torch.bool).triu(1)
    cells = scores.masked_fill(above, -torch.inf).softmax(-1)
    view = heads_view(cells, habit=softmax_patterns(10, n_tokens=256))
    page, logged, _ = open_page(chromium, view.save(tmp_path / "heads.html"))
    wait_until_drawn(page)  # in a minute even on a busy machine
    for canvas in page.locator("#heads canvas").all():
        assert_drawn(canvas)
    page.locator("#heads button").nth(9).click()
    wait_until_drawn(page, 9)
    assert_drawn(page.locator("#pattern"))
    words = page.locator("#tokens")
    words.locator("span").first.click()
    page.locator("h1").hover()
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowUp")  # to the one before the last, out of sight until now
    assert page.locator("#query p").inner_text() == "Query t254 (254) · kept"
    box, line = words.locator("span").nth(254).bounding_box(), words.bounding_box()
    assert line["y"] <= box["y"] < line["y"] + line["height"]
    assert logged == []
    page.close()


@pytest.mark.browser
def test_dark_readers_get_dark_views_and_readable_patterns(chromium, three_heads, tmp_path):
    def brightness(page, selector):
        rgb = page.evaluate(
            f"getComputedStyle(document.querySelector('{selector}')).backgroundColor"
        )
        return sum(int(number) for number in re.findall(r"\d+", rgb)[:3]) / 3

    path = three_heads.save(tmp_path / "heads.html")
    dark, *_ = open_page(chromium, path, color_scheme="dark")
    light, *_ = open_page(chromium, path, color_scheme="light")
    assert brightness(dark, "body") < 60
    assert brightness(light, "body") > 200
    assert brightness(dark, "#cells canvas") < 60
    assert colors_of(dark.locator("#pattern")).mean() < 90
    dark.close()
    light.close()


@pytest.mark.real
def test_a_real_model_shows_its_tokens_and_a_head_that_repeats(smollm2):
    text = "The quick brown fox jumps over the lazy dog."
    view = show_heads(smollm2, f"{text} {text} {text}", [(9, h) for h in range(9)])
    tokens = data_of(view)["tokens"]
    assert tokens.count("·fox") == 3
    assert "·jumps" in tokens
    assert len(view.html) < 600_000


@pytest.mark.real
def test_a_real_model_shows_pieces_of_characters_as_their_bytes(smollm2):
    view = show_heads(smollm2, smollm2.to_tokens("日本 👩", prepend_bos=False), "L0H0")
    pieces = [r"\xe6\x97", r"\xa5", "本", r"·\xf0\x9f", r"\x91", r"\xa9"]
    assert data_of(view)["tokens"] == pieces
