"""Cards of heads: every number on hand-made attention, and names that real heads deserve."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from mae_helpers import tiny_mae
from test_views import HOSTILE, FakeTokenizer, Page, assert_drawn, open_page

from aplens import (
    APMAE,
    Head,
    HeadRanking,
    collect_patterns,
    describe_heads,
    make_scenarios,
    map_heads,
    score_heads,
)
from aplens.describe.surprise_keys import KEY_KINDS, Answers, SurpriseTally, key_kinds
from aplens.heads import ModelShape
from aplens.models import describe_model
from aplens.views import HeadCards
from aplens.views.cards import _is_delimiter


@pytest.fixture(scope="module")
def mae():
    return tiny_mae()  # up to 16 tokens, patches of 4


def random_prompts(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 101, (n,), generator=generator).tolist() for n in lengths]


def make_ranking(model, *rows):
    columns = ["layer", "head", "mean", "low", "high", "measured"]
    frame = pd.DataFrame(rows, columns=columns)
    frame["importance"] = frame["mean"].abs()
    frame["toward_incorrect"] = frame["mean"].clip(lower=0)
    frame["toward_correct"] = (-frame["mean"]).clip(lower=0)
    return HeadRanking(frame, describe_model(model), {"metric": "logit_diff"})


# Where surprise falls, on attention made by hand


def test_a_key_counts_once_as_the_first_kind_that_it_is():
    tokens = torch.tensor([9, 1, 2, 3, 1, 2])  # 3 is a delimiter
    kinds = key_kinds(tokens, tokens == 3, Answers())
    names = [[KEY_KINDS[kind] for kind in row] for row in kinds.tolist()]
    assert names[1][:2] == ["previous_token", "self"]  # the first token is the one before, too
    assert names[4] == [
        "first_token",
        "duplicate_token",
        "induction",
        "previous_token",  # a delimiter as well
        "self",
        "other",  # a later key, which nothing attends to
    ]
    assert names[5] == [
        "first_token", "other", "duplicate_token", "induction", "previous_token", "self"
    ]  # fmt: skip


def test_an_answer_among_the_keys_is_named():
    tokens = torch.tensor([9, 1, 2, 4, 5, 2, 6, 7])  # as in "When Mary and John went, John gave to"
    kinds = key_kinds(tokens, tokens == 4, Answers(1, 2))
    assert [KEY_KINDS[kind] for kind in kinds[7].tolist()] == [
        "first_token", "answer", "wrong_answer", "delimiter", "other", "wrong_answer",
        "previous_token", "self",
    ]  # fmt: skip
    assert KEY_KINDS[kinds[5, 2]] == "duplicate_token"  # the copy that the subject looks back to


def test_surprise_is_what_attention_has_beyond_the_habit():
    tokens = torch.tensor([9, 1, 2, 1])
    habit = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.4, 0.2, 0.2, 0.2]])
    head = habit.clone()
    head[2] = torch.tensor([0.7, 0, 0.3, 0])  # 0.3 more on itself
    head[3] = torch.tensor([0, 0.3, 0.5, 0.2])  # 0.1 on its copy, 0.3 on what followed that
    tally = SurpriseTally(2, torch.zeros(10, dtype=torch.bool))
    tally.see(torch.stack([head, habit]), torch.stack([habit, habit]), tokens)
    np.testing.assert_allclose(tally.means(), [0.7 / 3, 0], atol=1e-7)
    by_kind = dict(zip(KEY_KINDS, tally.shares_by_kind()[0], strict=True))
    expected = {"self": 3 / 7, "duplicate_token": 1 / 7, "induction": 3 / 7}
    assert by_kind == pytest.approx(dict.fromkeys(KEY_KINDS, 0) | expected, abs=1e-6)
    assert np.isnan(tally.shares_by_kind()[1]).all()  # it follows its habit: no shares of nothing
    first, second = tally.shares_by_text({9: "<s>", 1: "a", 2: "b"})
    assert list(first) == ["b", "a"]
    assert first == pytest.approx({"b": 6 / 7, "a": 1 / 7}, abs=1e-6)
    assert second == {}
    alike, _ = tally.shares_by_text({9: "<s>", 1: "a", 2: "a"})
    assert alike == pytest.approx({"a": 1})


@pytest.mark.parametrize(
    ("text", "expected"),
    [(");\n", True), (" ", True), ("\n\n", True), ("«", True), ("a.", False), ("7", False)],
)
def test_delimiters_are_nothing_but_punctuation_and_blanks(text, expected):
    assert _is_delimiter(text) is expected


# Whole cards


def test_a_card_agrees_with_the_patterns_themselves(tiny_model, mae):
    prompts = [prompt * 2 for prompt in random_prompts(7, 6, 7, 5, 7)]
    exact = {"mae": mae, "precision": torch.float32}
    cards = describe_heads(tiny_model, prompts, "L2H1, L0H3", **exact)
    scores = score_heads(tiny_model, prompts, heads="L2H1, L0H3", **exact)
    frame = cards.to_frame()
    assert list(frame.index) == ["L2H1", "L0H3"]  # in the order asked for
    for column in ("template", "template_share", "variation"):
        expected = scores.loc[frame.index, column]
        pd.testing.assert_series_equal(frame[column], expected, check_dtype=False, rtol=1e-4)

    long = [prompt for prompt in prompts if len(prompt) == 14]
    patterns = collect_patterns(tiny_model, long)
    embeddings = torch.nn.functional.normalize(
        mae.encode(patterns, precision=torch.float32).double(), dim=-1
    )
    means = embeddings.mean(0)
    card, place = cards[0], patterns.heads.index(Head(2, 1))

    nearest = int((embeddings[:, place] @ means[place]).argmax())
    assert card.typical.prompt == prompts.index(long[nearest])
    attention = patterns.prompt(nearest)[place]
    torch.testing.assert_close(card.typical.attention, attention, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        card.typical.habit,
        mae.expect(attention[None], None, precision=torch.float32)[0],
        atol=1e-4,
        rtol=1e-3,
    )

    distances = []
    for prompt in prompts:
        attention = collect_patterns(tiny_model, prompt, "L2H1").prompt(0)
        gap = attention - mae.expect(attention, None, precision=torch.float32)
        distances += (gap.abs().sum(-1) / 2)[0, 1:].tolist()
    assert card.surprise == pytest.approx(np.mean(distances), rel=1e-3)
    assert sum(card.surprise_by_kind.values()) == pytest.approx(1)
    assert list(card.surprise_by_text.values()) == sorted(
        card.surprise_by_text.values(), reverse=True
    )
    assert len(card.surprise_by_text) == 5


def test_nearest_heads_are_those_of_a_map_of_the_same_prompts(tiny_model):
    mae, prompts = tiny_mae(fingerprint_dim=8), random_prompts(16, 9, 16, 4, 12, 30)
    with pytest.warns(UserWarning, match="prompts"):
        cards = describe_heads(tiny_model, prompts, "L2H1, L0H3", mae=mae)
    with pytest.warns(UserWarning, match="prompts"):
        heads = map_heads(tiny_model, prompts, mae=mae)
    for card in cards:
        expected = heads.nearest(str(card.head), k=3)["similarity"]
        assert [str(head) for head in card.nearest] == list(expected.index)
        assert list(card.nearest.values()) == pytest.approx(expected.tolist(), abs=1e-5)


def test_without_a_fingerprint_nearest_heads_have_the_most_similar_mean_embeddings(tiny_model, mae):
    prompts = random_prompts(16, 9, 12)
    exact = {"precision": torch.float32}
    (card,) = describe_heads(tiny_model, prompts, "L2H1", mae=mae, **exact)
    patterns = collect_patterns(tiny_model, prompts)
    embeddings = mae.encode(patterns, **exact).double()
    embeddings = torch.nn.functional.normalize(embeddings, dim=-1).mean(0)
    cosines = torch.nn.functional.normalize(embeddings - embeddings.mean(0), dim=-1)
    cosines = cosines @ cosines[patterns.heads.index(Head(2, 1))]
    best = cosines.argsort(descending=True).tolist()[1:4]
    assert list(card.nearest) == [patterns.heads[i] for i in best]
    assert list(card.nearest.values()) == pytest.approx(cosines[best].tolist(), abs=1e-5)


def test_cards_do_not_depend_on_batches_and_tell_their_progress(any_model, mae):
    prompts, seen = random_prompts(16, 9, 12, 16, 6), []
    exact = {"heads": "L1H1", "mae": mae, "precision": torch.float32}
    one = describe_heads(any_model, prompts, **exact, batch_size=1)
    two = describe_heads(
        any_model, prompts, **exact, batch_size=2, progress=lambda *done: seen.append(done)
    )
    assert seen == [(done, 10) for done in (2, 4, 5, 7, 9, 10)]
    numbers = [cards.to_frame().select_dtypes("number") for cards in (one, two)]
    pd.testing.assert_frame_equal(*numbers, rtol=1e-3, atol=1e-6)
    assert list(one[0].nearest) == list(two[0].nearest)


def test_a_ranking_chooses_heads_and_gives_effects(any_model, mae):
    ranking = make_ranking(
        any_model,
        (1, 2, -2.5, -3.0, -2.0, True),
        (0, 1, 0.25, 0.1, 0.4, False),
        (2, 2, 0.1, np.nan, np.nan, True),
    )
    prompts = random_prompts(16, 16)
    cards = describe_heads(any_model, prompts, ranking, mae=mae)
    frame = cards.to_frame()
    assert list(frame.index) == ["L1H2", "L0H1", "L2H2"]
    assert frame["rank"].tolist() == [1, 2, 3]
    assert frame["mean"].tolist() == [-2.5, 0.25, 0.1]
    assert frame["measured"].tolist() == [True, False, True]
    headings = Page(cards.view().html).all("span")
    text = [text.strip() for _, text in headings]
    assert "#1 of 3 · effect −2.50 [−3.00, −2.00], measured" in text
    assert "#2 of 3 · effect +0.250 [+0.100, +0.400], estimated" in text
    assert "#3 of 3 · effect +0.100, measured" in text
    assert "logit diff" in cards.view().html
    assert repr(cards).startswith(f"HeadCards(3 heads of {ranking.model.name}: L1H2 ")

    others = describe_heads(any_model, prompts, "L0H0, L0H1", mae=mae, ranking=ranking).to_frame()
    assert others["rank"].isna().tolist() == [True, False]
    plain = HeadRanking.from_values([Head(0, 0)], np.array([[2.0]]), describe_model(any_model))
    cards = describe_heads(any_model, prompts, plain, mae=mae)
    assert "measured" not in cards.to_frame()
    assert "#1 of 1 · score +2.00" in cards.to_html()
    foreign = HeadRanking.from_values([Head(0, 0)], np.ones((1, 1)), ModelShape("other", 12, 12))
    with pytest.raises(ValueError, match=r"the ranking is of .*other"):
        describe_heads(any_model, prompts, foreign, mae=mae)


def test_short_prompts_are_left_out_and_long_ones_cut(any_model, mae):
    short, middle, long = random_prompts(4, 12, 30)
    with pytest.warns(UserWarning, match="prompts") as caught:
        cards = describe_heads(any_model, [short, long, middle, middle], "L1H1", mae=mae)
    told = [str(warning.message) for warning in caught]
    assert ["first 16 tokens" in told[0], "1 of 4 prompts have at most 4" in told[1]] == [True] * 2
    assert all(warning.filename == __file__ for warning in caught)
    assert cards.n_prompts == 3
    assert cards[0].typical.prompt in (1, 2, 3)  # places among all that were given
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = describe_heads(any_model, [long[:16], middle, middle], "L1H1", mae=mae)
    assert same[0].surprise == pytest.approx(cards[0].surprise, rel=1e-4)
    assert same[0].typical.prompt == cards[0].typical.prompt - 1
    with pytest.raises(ValueError, match=r"all 2 prompts have at most 4 tokens.* give longer"):
        describe_heads(any_model, [short, short], "L1H1", mae=mae)
    with pytest.raises(ValueError, match="use 'aplens-short', whose patches are of 8, or give"):
        describe_heads(any_model, [middle], "L1H1", mae=tiny_mae(n_ctx=32, patch_size=16))


@pytest.mark.browser
def test_cards_draw_alone_and_inside_a_page_and_hostile_tokens_do_not_run(
    chromium, any_model, mae, monkeypatch, tmp_path
):
    monkeypatch.setattr(any_model, "tokenizer", FakeTokenizer(), raising=False)
    prompts = [list(range(len(HOSTILE)))[:16], list(range(4, 20))]
    cards = describe_heads(any_model, prompts, "L0H0, L1H1, L2H2", mae=mae)
    assert isinstance(cards, HeadCards)
    alone = cards.view().save(tmp_path / "cards.html")
    inside = tmp_path / "page.html"
    inside.write_text(f"<!DOCTYPE html><title>page</title>{cards.to_html()}", encoding="utf-8")
    for path in (alone, inside):
        page, logged, requested = open_page(chromium, path)
        images = page.locator(".cards article img")
        assert images.count() == 6
        for image in images.all():
            assert_drawn(image)
        assert page.evaluate("window.pwned") is None
        assert page.locator("h3").nth(1).inner_text().startswith("L1H1")
        assert logged == []
        assert requested == [path.as_uri()]
        page.close()
    page = chromium.new_page(viewport={"width": 900, "height": 1000})
    page.set_content(cards._repr_html_())
    frame = page.frames[1]
    frame.wait_for_selector(".cards article")
    tall = frame.evaluate("document.documentElement.scrollHeight")
    assert tall <= cards.view().height + 1  # three cards show without scrolling
    page.close()


# The real model


@pytest.mark.real
def test_heads_on_repeated_random_tokens_get_the_names_they_deserve(smollm2):
    mae = APMAE.from_pretrained("aplens-short")
    generator = torch.Generator().manual_seed(0)
    halves = torch.randint(1000, 40_000, (6, 24), generator=generator)
    tokens = torch.cat([torch.zeros(6, 1, dtype=torch.long), halves, halves], dim=1)
    scores = score_heads(smollm2, tokens, mae=mae)
    previous, induction = (scores[name].idxmax() for name in ("previous_token", "induction"))
    cards = describe_heads(smollm2, tokens, [previous, induction], mae=mae)
    assert [card.template for card in cards] == ["previous_token", "induction"]
    assert [card.template_share for card in cards] == [1, 1]
    assert cards[0].surprise < cards[1].surprise
    assert max(cards[1].surprise_by_kind, key=cards[1].surprise_by_kind.get) == "induction"


@pytest.mark.real
def test_the_head_that_matters_most_for_ioi_looks_at_the_subject_beyond_its_habit(smollm2):
    names = (("Mary", "John"), ("Anna", "Peter"), ("Susan", "Tom"), ("Laura", "Paul"))
    prompts = [
        (template.format(a=a, b=b), f" {a}", f" {b}")
        for a, b in names
        for template in (
            "After {b} and {a} left the park, {b} handed a ball to",
            "Yesterday {b} and {a} were at the school. Then {b} decided to give a ring to",
        )
    ]
    texts, answers, wrong = map(list, zip(*prompts, strict=True))
    scenarios = make_scenarios(smollm2, texts, answers, wrong)
    mae = APMAE.from_pretrained("aplens-short")
    kinds = describe_heads(smollm2, scenarios, "L23H3", mae=mae)[0].surprise_by_kind
    assert max(kinds, key=kinds.get) == "wrong_answer"
    without = describe_heads(smollm2, texts, "L23H3", mae=mae)[0].surprise_by_kind
    assert without["answer"] == without["wrong_answer"] == 0  # plain prompts have no answers
