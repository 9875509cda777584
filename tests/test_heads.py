from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aplens import Head, HeadRanking, parse_heads
from aplens.heads import ModelShape

heads = st.builds(Head, st.integers(0, 99), st.integers(0, 99))


def make_ranking(n_layers=2, n_heads=3, means=None):
    means = np.linspace(-0.5, 0.5, n_layers * n_heads) if means is None else np.asarray(means)
    layer, head = np.divmod(np.arange(n_layers * n_heads), n_heads)
    return HeadRanking(
        pd.DataFrame(
            {
                "layer": layer,
                "head": head,
                "importance": np.abs(means) + 0.01,
                "mean": means,
                "toward_incorrect": np.maximum(means, 0),
                "toward_correct": np.maximum(-means, 0),
            }
        ),
        model=ModelShape("tiny", n_layers, n_heads),
        metadata={"seed": 0},
    )


@pytest.mark.parametrize(
    "spelling",
    [Head(5, 3), (5, 3), "L5H3", "l5h3", "5.3", " L5 H3 ", [(5, 3)], {5: [3]}, {5: 3}, ["5.3"]],
)
def test_every_spelling_of_a_head_is_the_same_head(spelling):
    assert parse_heads(spelling) == (Head(5, 3),)


def test_a_list_of_two_pairs_is_two_heads_and_a_tuple_of_two_numbers_is_one():
    assert parse_heads([(1, 2), (3, 4)]) == (Head(1, 2), Head(3, 4))
    assert parse_heads((1, 2)) == (Head(1, 2),)


@given(st.lists(heads, max_size=20))
def test_names_read_back_and_order_survives(chosen):
    unique = tuple(dict.fromkeys(chosen))
    assert parse_heads([str(head) for head in chosen]) == unique
    assert parse_heads([f"{head.layer}.{head.head}" for head in chosen]) == unique
    if chosen:
        assert parse_heads(", ".join(map(str, chosen))) == unique


def test_layer_one_head_ten_is_not_head_one():
    assert parse_heads("5.10") == (Head(5, 10),)
    with pytest.raises(TypeError, match="ambiguous"):
        parse_heads(5.10)


@pytest.mark.parametrize(
    ("spelling", "error", "words"),
    [
        ("H3", ValueError, "'H3'"),
        ((30, 0), ValueError, "layer 30 is out of range for 30 layers"),
        ((0, 9), ValueError, "head 9 is out of range for 9 heads"),
        ((-1, 0), ValueError, "count from 0"),
        (7, TypeError, "7"),
        ({1: [2.5]}, TypeError, r"2\.5"),
        (None, TypeError, "None"),
    ],
)
def test_what_is_no_head_is_refused_by_name(spelling, error, words):
    with pytest.raises(error, match=words):
        parse_heads(spelling, ModelShape("gpt2", 30, 9))


def test_top_orders_by_the_score_asked_for():
    ranking = make_ranking(means=[0.5, -0.4, 0.3, -0.2, 0.1, 0.0])
    assert ranking.top(2) == (Head(0, 0), Head(0, 1))
    assert ranking.top(9, by="toward_incorrect") == (Head(0, 0), Head(0, 2), Head(1, 1))
    assert ranking.top(9, by="toward_correct") == (Head(0, 1), Head(1, 0))
    assert next(iter(ranking)) == Head(0, 0)


def test_top_refuses_nonsense():
    with pytest.raises(ValueError, match="-1"):
        make_ranking().top(-1)
    with pytest.raises(ValueError, match="'best'"):
        make_ranking().top(1, by="best")


def test_random_heads_are_seeded_nested_and_distinct():
    ranking = make_ranking(5, 5)
    assert ranking.random(7, seed=1) == ranking.random(7, seed=1)
    assert ranking.random(7, seed=1)[:3] == ranking.random(3, seed=1)
    assert ranking.random(7, seed=1) != ranking.random(7, seed=2)
    assert len(set(ranking.random(25, seed=0))) == 25
    with pytest.raises(ValueError, match="26"):
        ranking.random(26)
    with pytest.raises(ValueError, match=r"seed must be a whole number from 0 .* got -1"):
        ranking.random(3, seed=-1)


def test_a_ranking_survives_saving(tmp_path):
    ranking = make_ranking()
    ranking.save(tmp_path / "r.json")
    loaded = HeadRanking.load(tmp_path / "r.json")
    pd.testing.assert_frame_equal(loaded.to_frame(), ranking.to_frame())
    assert loaded.model == ModelShape("tiny", 2, 3)
    assert loaded.metadata == {"seed": 0}
    (tmp_path / "printed.json").write_text(ranking.to_json())
    printed = HeadRanking.load(tmp_path / "printed.json")
    pd.testing.assert_frame_equal(printed.to_frame(), ranking.to_frame())


def test_frame_is_indexed_by_name_and_is_a_copy():
    ranking = make_ranking()
    frame = ranking.to_frame()
    assert list(frame.index) == [str(head) for head in ranking]
    frame["importance"] = 0.0
    assert ranking.to_frame()["importance"].min() > 0


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "r.json"
    path.write_text("{broken")
    with pytest.raises(ValueError, match=r"r\.json is not valid JSON"):
        HeadRanking.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="not a head ranking"):
        HeadRanking.load(path)
    make_ranking().save(path)
    data = json.loads(path.read_text())
    del data["n_heads"]
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match="n_heads"):
        HeadRanking.load(path)


def test_broken_tables_are_refused():
    frame = make_ranking().to_frame()
    shape = ModelShape("tiny", 2, 3)
    with pytest.raises(ValueError, match="importance"):
        HeadRanking(frame.drop(columns="importance"), shape)
    with pytest.raises(ValueError, match=r"heads\[0\].mean must be a finite number, got nan"):
        HeadRanking(frame.assign(mean=np.nan), shape)
    with pytest.raises(ValueError, match=r"heads\[0\].head must be a whole number, got 1.5"):
        HeadRanking(frame.assign(head=1.5), shape)
    with pytest.raises(ValueError, match="repeated"):
        HeadRanking(pd.concat([frame, frame.head(1)]), shape)
    with pytest.raises(ValueError, match="out of range"):
        HeadRanking(frame, model=ModelShape("tiny", 1, 3))


def test_a_ranking_is_itself_a_selection_of_heads():
    ranking = make_ranking()
    assert parse_heads(ranking) == tuple(ranking)
