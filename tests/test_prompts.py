"""Prompts of any lengths, in any form; and that padding never reaches a pattern."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import KINDS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import aplens
from aplens.models import last_token_logits
from aplens.patterns import AttentionPatterns, stream_patterns
from aplens.prompts import Prompts, read_prompts
from aplens.scenarios import ScenarioError, Scenarios, make_scenarios

RAGGED = [[5, 9, 2, 7], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [42] * 7, [11]]


def alone(model, ids):
    return aplens.collect_patterns(model, torch.tensor([ids])).values[0]


def padded(prompts, side, filler):
    width = max(map(len, prompts))
    rows, mask = [], []
    for ids in prompts:
        blank = width - len(ids)
        left, right = (blank, 0) if side == "left" else (0, blank)
        rows.append([filler] * left + ids + [filler] * right)
        mask.append([0] * left + [1] * len(ids) + [0] * right)
    return torch.tensor(rows), torch.tensor(mask)


# --- reading -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 100), min_size=1, max_size=12), min_size=1, max_size=6),
    st.sampled_from(["left", "right"]),
    st.integers(0, 100),
)
def test_padding_on_either_side_is_taken_out_whatever_token_it_is(any_model, prompts, side, filler):
    tokens, mask = padded(prompts, side, filler)
    read = read_prompts(any_model, {"input_ids": tokens, "attention_mask": mask})
    assert [read.ids(i) for i in range(len(read))] == prompts
    again = [batch.ids(i) for batch in read.split(2) for i in range(len(batch))]
    assert again == prompts


def test_every_form_of_the_same_prompts_is_read_alike(tiny_model):
    tokens, mask = padded(RAGGED, "left", 0)
    forms = {
        "lists": RAGGED,
        "tensors": [torch.tensor(ids) for ids in RAGGED],
        "arrays": [np.array(ids) for ids in RAGGED],
        "arrays as files have them": [np.array(ids, np.uint16) for ids in RAGGED],
        "array of lists": pd.Series(RAGGED).to_numpy(),
        "series": pd.Series(RAGGED, index=["prompts", "index", "tolist", "prompts"]),
        "series of arrays": pd.Series([np.array(ids) for ids in RAGGED], index=[3, 2, 1, 0]),
        "encoding of arrays": {"input_ids": [np.array(ids) for ids in RAGGED]},
        "encoding": {"input_ids": tokens, "attention_mask": mask},
        "encoding of lists": {"input_ids": tokens.tolist(), "attention_mask": mask.tolist()},
        "prompts": Prompts.from_ids(RAGGED),
        "scenarios": make_scenarios(tiny_model, RAGGED, [1, 2, 3, 4]),
    }
    for name, form in forms.items():
        read = read_prompts(tiny_model, form)
        assert [read.ids(i) for i in range(4)] == RAGGED, name
    for form, own in ((tokens, mask), (tokens.numpy(), mask.numpy())):
        read = read_prompts(tiny_model, {"input_ids": form, "attention_mask": own})
        assert read.lengths.tolist() == [4, 12, 7, 1]
    for dtype in (np.uint16, np.int32, np.uint64):
        batch = read_prompts(tiny_model, tokens.numpy().astype(dtype))
        assert batch.tokens.tolist() == tokens.tolist()
        one = read_prompts(tiny_model, np.array(RAGGED[0], dtype))
        assert one.tokens.tolist() == [RAGGED[0]]
        small = read_prompts(tiny_model, torch.from_numpy(np.array(RAGGED[0], dtype)))
        assert small.tokens.tolist() == [RAGGED[0]]
    ids = pd.Series(RAGGED[0], index=[9, 8, 7, 6])
    assert read_prompts(tiny_model, ids).tokens.tolist() == [RAGGED[0]]
    assert read_prompts(tiny_model, RAGGED[0]).tokens.tolist() == [RAGGED[0]]
    assert read_prompts(tiny_model, torch.tensor(RAGGED[0])).tokens.tolist() == [RAGGED[0]]
    assert read_prompts(tiny_model, {"input_ids": RAGGED[0]}).tokens.tolist() == [RAGGED[0]]


@pytest.mark.parametrize(
    ("prompts", "error", "words"),
    [
        ([], ValueError, "got none"),
        ([[1, 2], []], ValueError, "prompt 1 has no tokens"),
        ([[1, 2], [3, 101]], ValueError, "0 to 100.*101"),
        ([[-1, 2]], ValueError, "-1"),
        ([[1] * 65], ValueError, "65 tokens are too long"),
        ({"tokens": [1]}, ValueError, "input_ids"),
        (3.5, TypeError, "float"),
        ([1.5, 2.5], TypeError, "1.5"),
        ([1, None, 2], TypeError, "got None at place 1"),
        (np.array([1.5, 2.5]), TypeError, "got 1.5 for prompt 0"),
        (np.array([True]), TypeError, "got True for prompt 0"),
        ([np.array([1, 2]), np.array([1.5])], TypeError, r"got \[1.5\] for prompt 1"),
        (np.array([2**63 + 5], np.uint64), ValueError, "as large as 9223372036854775813"),
        (np.zeros((1, 2, 3), int), TypeError, r"got \[\[0, 0, 0\], \[0, 0, 0\]\] for prompt 0"),
        (np.ma.array([1, 2], mask=[False, True]), TypeError, "got None at place 1"),
        (pd.Series([[1], None], index=["x", "y"]), TypeError, r"got None for prompt 1 \(row 'y'\)"),
        (pd.Series(["a", np.nan]), TypeError, "got nan for prompt 1$"),
        (pd.Series([1, None, 3], index=[7, 8, 9]), TypeError, r"got nan for prompt 1 \(row 8\)"),
        (pd.Series([1, None], dtype="Int64"), TypeError, "got <NA> at place 1"),
        (pd.DataFrame({"prompts": [[1, 2]]}), TypeError, "got DataFrame"),
    ],
)
def test_what_cannot_be_read_is_refused_in_words(tiny_model, prompts, error, words):
    with pytest.raises(error, match=words):
        read_prompts(tiny_model, prompts)


@pytest.fixture(params=[True, False], ids=["its tokenizer puts BOS", "its tokenizer puts none"])
def speaking_model(request, tiny_model, monkeypatch):
    """A model of five words, whose tokenizer puts a BOS before them or does not."""
    words = Tokenizer(WordLevel({"<s>": 0, "one": 1, "two": 2, "three": 3, "?": 4}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    words.add_special_tokens(["<s>"])
    if request.param:
        words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", pad_token="?")
    monkeypatch.setattr(tiny_model, "tokenizer", tokenizer)
    monkeypatch.setattr(tiny_model.cfg, "tokenizer_prepends_bos", request.param)
    return tiny_model


@pytest.mark.parametrize("by_default", [True, False])
def test_a_text_that_begins_with_bos_gets_no_second_one(speaking_model, by_default, monkeypatch):
    monkeypatch.setattr(speaking_model.cfg, "default_prepend_bos", by_default)
    for prepend_bos in (None, True, False):
        puts_one = by_default if prepend_bos is None else prepend_bos
        for text, expected in (
            ("<s>one two", [0, 1, 2]),
            ("<s>", [0]),
            ("<s><s>one", [0, 0, 1]),  # what the text says twice stays
            ("one <s> two", [0] * puts_one + [1, 0, 2]),
            ("one two", [0] * puts_one + [1, 2]),
        ):
            read = read_prompts(speaking_model, [text, text], prepend_bos=prepend_bos)
            assert read.tokens.tolist() == [expected] * 2, (text, prepend_bos)


def test_a_prompt_of_bos_alone_has_an_answer(speaking_model):
    scenarios = make_scenarios(speaking_model, ["", "one"], ["one", " two"], prepend_bos=True)
    assert [scenario.prompt for scenario in scenarios] == [(0,), (0, 1)]
    assert scenarios.targets().tolist() == [1, 2]


def test_columns_of_texts_and_answers_are_taken_row_by_row(speaking_model):
    """Whatever pandas calls the rows."""
    texts, answers = ["<s>one", "<s>two one", "<s>three"], [" two", " three", " one"]
    labels = [2, 0, 1]
    expected = make_scenarios(
        speaking_model, texts, answers, [" one", " two", " two"], groups=["a", "b", "a"]
    )
    assert expected.targets().tolist() == [2, 3, 1]
    for wrap in (lambda values: pd.Series(values, index=labels), np.array):
        made = make_scenarios(
            speaking_model,
            wrap(texts),
            wrap(answers),
            wrap([" one", " two", " two"]),
            groups=wrap(["a", "b", "a"]),
        )
        assert made == expected
        by_id = make_scenarios(speaking_model, wrap(texts), wrap([2, 3, 1]), wrap([1, 2, 2]))
        assert by_id.targets().tolist() == [2, 3, 1]
        assert by_id.wrong_targets().tolist() == [1, 2, 2]
        with pytest.raises(ScenarioError, match="prompt 1: 3 and 3 begin with the same token"):
            make_scenarios(speaking_model, wrap(texts), wrap([2, 3, 1]), wrap([1, 3, 2]))


def test_arrays_and_columns_go_wherever_prompts_go(tiny_model):
    from correctness_helpers import make_mae

    ids = [[7, 3, 5, 1, 9, 2] * 3, [4, 4, 8, 6, 3, 1] * 3]
    other = [[7, 3, 5, 1, 9, 3] * 3, [4, 4, 8, 6, 3, 2] * 3]
    heads, mae = "L0H1, L2H3", make_mae()

    def results(wrap):
        prompts, corrupted = wrap(ids), wrap(other)
        scenarios = make_scenarios(tiny_model, ids, [1, 2], [3, 4])
        metric = aplens.logit_difference(scenarios)
        with aplens.ablate_heads(tiny_model, heads, method="mean", reference=corrupted):
            ablated = tiny_model(torch.tensor(ids))
        yield ablated.detach()
        yield aplens.collect_patterns(tiny_model, prompts, heads).values
        table = aplens.path_patch(
            tiny_model, prompts, corrupted, heads, "logits", metric=metric, progress=None
        )
        yield torch.tensor(table.to_frame()["recovered"].to_numpy())
        scores = aplens.score_heads(tiny_model, prompts, mae=mae)
        yield scores.to_csv()
        yield aplens.show_heads(tiny_model, prompts[:1], heads).html

    for wrap in (np.array, lambda rows: pd.Series(rows, index=range(5, 5 + len(rows)))):
        for got, expected in zip(results(wrap), results(list), strict=True):
            same = torch.equal if isinstance(got, torch.Tensor) else str.__eq__
            assert same(got, expected)


def test_text_needs_a_tokenizer(tiny_model, monkeypatch):
    monkeypatch.setattr(tiny_model, "tokenizer", None)
    for text in ("text", ["a", "b"]):
        with pytest.raises(ValueError, match="no tokenizer"):
            read_prompts(tiny_model, text)
    with pytest.raises(ValueError, match="no tokenizer"):
        make_scenarios(tiny_model, RAGGED, ["x"] * 4)


def test_a_mask_of_another_shape_or_for_no_token_ids_is_refused(tiny_model):
    tokens, mask = padded(RAGGED, "left", 0)
    none_of_the_last = mask * torch.tensor([[1], [1], [1], [0]])
    for ids, own, error, words in (
        (tokens, mask[:, 1:], ValueError, r"of \[12, 12, 12, 12\] tokens"),
        (tokens, none_of_the_last, ValueError, "prompt 3 has no tokens"),
        (RAGGED, mask, ValueError, r"of \[4, 12, 7, 1\] tokens"),
        (Prompts.from_ids(RAGGED), mask, TypeError, "got Prompts"),
    ):
        with pytest.raises(error, match=words):
            read_prompts(tiny_model, {"input_ids": ids, "attention_mask": own})


# --- no padding in a pattern -------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_ragged_prompts_give_each_prompts_own_patterns(tiny_model, batch_size):
    patterns = aplens.collect_patterns(tiny_model, RAGGED, ["L2H1", "L0H3"], batch_size)
    assert patterns.values.shape == (4, 2, 12, 12)
    for index, ids in enumerate(RAGGED):
        expected = aplens.collect_patterns(tiny_model, [ids], ["L2H1", "L0H3"]).values[0]
        torch.testing.assert_close(patterns.prompt(index), expected, atol=1e-6, rtol=0)
        around = patterns.values[index].clone()
        around[:, : len(ids), : len(ids)] = 0
        assert (around == 0).all()


def test_prompts_from_four_tokens_to_the_models_limit(tiny_model):
    from correctness_helpers import make_mae

    mae = make_mae(n_ctx=64)
    prompts = [[7, 3, 5, 1], [index % 101 for index in range(64)]]
    patterns = aplens.collect_patterns(tiny_model, prompts)
    for index, ids in enumerate(prompts):
        torch.testing.assert_close(
            patterns.prompt(index), alone(tiny_model, ids), atol=1e-6, rtol=0
        )
    assert mae.encode(patterns).isfinite().all()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("filler", [0, 42])  # 42 is a token of the prompts, too
def test_the_side_and_the_token_of_the_padding_change_nothing(tiny_model, side, filler):
    tokens, mask = padded(RAGGED, side, filler)
    encoding = {"input_ids": tokens, "attention_mask": mask}
    patterns = aplens.collect_patterns(tiny_model, encoding)
    expected = aplens.collect_patterns(tiny_model, RAGGED)
    assert torch.equal(patterns.values, expected.values)
    assert torch.equal(patterns.lengths, expected.lengths)


def test_streaming_ragged_prompts_gives_the_logits_after_each_ones_last_token(tiny_model):
    for rows, patterns, logits in stream_patterns(tiny_model, RAGGED, batch_size=3):
        for index, ids in enumerate(RAGGED[rows]):
            after = last_token_logits(tiny_model, torch.tensor([ids]))[0]
            torch.testing.assert_close(logits[index], after, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                patterns.prompt(index), alone(tiny_model, ids), atol=1e-6, rtol=0
            )


@pytest.mark.parametrize("side", ["left", "right"])
def test_patterns_of_someones_own_padded_pass_can_be_unpadded(tiny_model, side):
    tokens, mask = padded(RAGGED, side, 0)
    with torch.no_grad(), aplens.PatternCollector(tiny_model) as collector:
        tiny_model(tokens, attention_mask=mask)
    patterns = collector.patterns.unpad(mask)
    assert patterns.lengths.tolist() == [4, 12, 7, 1]
    for index, ids in enumerate(RAGGED):
        torch.testing.assert_close(
            patterns.prompt(index), alone(tiny_model, ids), atol=1e-5, rtol=0
        )


def test_a_pass_that_attended_to_its_padding_is_caught(tiny_model):
    tokens, mask = padded(RAGGED, "left", 0)
    with torch.no_grad(), aplens.PatternCollector(tiny_model) as collector:
        tiny_model(tokens)  # without the mask
    with pytest.raises(ValueError, match="attention to padding"):
        collector.patterns.unpad(mask)
    with pytest.raises(ValueError, match=r"\(4, 12\), got \(4, 11\)"):
        collector.patterns.unpad(mask[:, 1:])


def test_a_tokenizer_that_pads_left_hides_no_token_of_a_prompt(tiny_hooked):
    """TransformerLens would take token 0, which this tokenizer pads with, for padding."""
    from types import SimpleNamespace

    tokens = torch.tensor([[0, 0, 5, 9, 0, 7]])
    expected = aplens.collect_patterns(tiny_hooked, tokens).values
    tiny_hooked.tokenizer = SimpleNamespace(
        padding_side="left", pad_token_id=0, bos_token_id=100, pad_token="<p>", bos_token="<b>"
    )
    try:
        torch.testing.assert_close(aplens.collect_patterns(tiny_hooked, tokens).values, expected)
    finally:
        tiny_hooked.tokenizer = None


# --- embeddings --------------------------------------------------------------------------------


def test_embeddings_of_ragged_patterns_are_those_of_each_prompt(tiny_model):
    from correctness_helpers import make_mae

    mae = make_mae()
    patterns = aplens.collect_patterns(tiny_model, RAGGED)
    embeddings = mae.encode(patterns)
    for index in range(4):
        expected = mae.encode(patterns.prompt(index))
        torch.testing.assert_close(embeddings[index], expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match=r"one length, got \[1, 4, 7, 12\]"):
        mae.reconstruct(patterns)
    short = AttentionPatterns(patterns.values[:1], patterns.heads, patterns.lengths[:1])
    torch.testing.assert_close(mae.encode(short), embeddings[:1], atol=1e-6, rtol=1e-5)


def test_cropping_ragged_patterns_keeps_the_short_ones(tiny_model):
    patterns = aplens.collect_patterns(tiny_model, RAGGED).crop(5)
    assert patterns.lengths.tolist() == [4, 5, 5, 1]
    assert torch.allclose(patterns.prompt(1), alone(tiny_model, RAGGED[1][:5]), atol=1e-6)


def test_lengths_that_do_not_fit_are_refused():
    heads = (aplens.Head(0, 0),)
    for lengths in ([3, 4], [0, 2], [1]):
        with pytest.raises(ValueError, match="lengths of 1 to 3"):
            AttentionPatterns(torch.zeros(2, 1, 3, 3), heads, torch.tensor(lengths))


# --- scenarios of one's own --------------------------------------------------------------------


def test_own_scenarios_save_and_load(tiny_model, tmp_path):
    scenarios = make_scenarios(tiny_model, RAGGED, [1, 2, 3, 4], [5, 6, 7, 8], groups=list("aabb"))
    assert scenarios.prompts().lengths.tolist() == [4, 12, 7, 1]
    assert scenarios.wrong_targets().tolist() == [5, 6, 7, 8]
    assert scenarios.files == ["a", "a", "b", "b"]
    scenarios.save(tmp_path / "own.parquet")
    assert Scenarios.load(tmp_path / "own.parquet") == scenarios
    without = make_scenarios(tiny_model, RAGGED, [1, 2, 3, 4])
    without.save(tmp_path / "without.parquet")
    assert Scenarios.load(tmp_path / "without.parquet") == without
    with pytest.raises(ScenarioError, match="4 of 4 scenarios have no wrong answer"):
        without.wrong_targets()


def test_equal_prompts_are_one_group(tiny_model):
    scenarios = make_scenarios(tiny_model, [[1, 2], [3], [1, 2]], [1, 2, 3])
    assert scenarios.files == ["prompt-0", "prompt-1", "prompt-0"]


def test_answers_that_make_no_sense_are_refused(tiny_model):
    for arguments, words in (
        (([1, 2],), "answers for each of 4 prompts, got 2"),
        (([1, 2, 3, 4], [1, 9, 9, 9]), "prompt 0: 1 and 1 begin with the same token"),
        (([1, 2, 3, 4], [9]), "wrong_answers for each of 4 prompts, got 1"),
        (([1, 2, 3, 101],), "0 to 100"),
        (("abcd",), "answers for each of 4 prompts, got 'abcd'"),
        (([1, 2, 3, None],), "answers as texts or whole numbers, got None for prompt 3"),
        (([1, 2.5, 3, 4],), "answers as texts or whole numbers, got 2.5 for prompt 1"),
        (([1, 2, 3, 4], [True, 1, 1, 1]), "wrong_answers as texts .* got True for prompt 0"),
        ((pd.Series([1, None, 3, 4], index=list("abcd")),), r"got nan for prompt 1 \(row 'b'\)"),
    ):
        with pytest.raises(ValueError, match=words):
            make_scenarios(tiny_model, RAGGED, *arguments)


@pytest.mark.real
def test_text_answers_are_the_tokens_that_continue_the_text(smollm2_bridge):
    model = smollm2_bridge
    text = "When Mary and John went to the store, John gave a drink to"
    (scenario,) = make_scenarios(model, [text], [" Mary"], [" John"])
    together = model.to_tokens(text + " Mary")[0].tolist()
    assert [*scenario.prompt, scenario.target] == together
    assert model.to_string([scenario.wrong]) == " John"
    logits = last_token_logits(model, scenario_tokens := torch.tensor([scenario.prompt]))
    assert logits[0, scenario.target] > logits[0, scenario.wrong]
    assert aplens.collect_patterns(model, text, "L3H2").n_tokens == scenario_tokens.shape[1]
    with pytest.raises(ScenarioError, match="share a token"):
        make_scenarios(model, ["The capital of France is "], ["Paris"])
    with pytest.raises(ScenarioError, match="empty text"):
        make_scenarios(model, [text], [""])
    for bos in (True, False):
        ids = read_prompts(model, [text], prepend_bos=bos).ids(0)
        assert ids == model.to_tokens(text, prepend_bos=bos)[0].tolist()


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_templates_text_is_read_as_the_template_tokenizes_it(
    kind, smollm2_tokenizer, request
):
    model = request.getfixturevalue(f"smollm2_{kind}")
    messages = [{"role": "user", "content": "Name a colour."}]
    options = {"add_generation_prompt": True}
    text = smollm2_tokenizer.apply_chat_template(messages, tokenize=False, **options)
    assert text.startswith(smollm2_tokenizer.bos_token)
    encoding = smollm2_tokenizer.apply_chat_template(messages, return_dict=True, **options)
    for prepend_bos in (None, True, False):
        read = read_prompts(model, pd.Series([text]), prepend_bos=prepend_bos)
        assert read.ids(0) == encoding["input_ids"]
    (scenario,) = make_scenarios(model, [text], ["Blue"])
    assert list(scenario.prompt) == encoding["input_ids"]


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_padding_leaks_into_no_pattern_of_the_real_model(kind, request):
    model = request.getfixturevalue(f"smollm2_{kind}")
    texts = ["One two three", "def f(x):\n    return x + 1\n" * 3, "Hi"]
    patterns = aplens.collect_patterns(model, texts, {0: [0], 29: [8]})
    for index, text in enumerate(texts):
        expected = aplens.collect_patterns(model, text, {0: [0], 29: [8]}).values[0]
        torch.testing.assert_close(patterns.prompt(index), expected, atol=1e-4, rtol=0)
