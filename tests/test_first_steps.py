"""What goes wrong in the first minutes is said in words that help."""

from __future__ import annotations

import warnings

import pytest
import torch
from scenario_helpers import byte_level_tokenizer, java_file

import aplens
from aplens.models import loading, wheels
from aplens.scenarios import open_corpus


@pytest.fixture(scope="module")
def java(tmp_path_factory):
    folder = tmp_path_factory.mktemp("java")
    for number in range(6):
        (folder / f"F{number}.java").write_text(java_file(number))
    return folder


def test_scenarios_are_mined_model_first_and_the_old_order_is_warned_of(java):
    tokenizer = byte_level_tokenizer()
    options = {"tasks": ["identifiers"], "per_task": 4, "context_length": 32}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mined = aplens.mine_scenarios(tokenizer, java, **options)
    for corpus in (java, open_corpus(java)):
        with pytest.warns(DeprecationWarning, match="model first, then the corpus"):
            assert aplens.mine_scenarios(corpus, tokenizer, **options) == mined


@pytest.mark.parametrize(
    "call",
    [
        lambda model: aplens.rank_heads([[1, 2, 3]], model),
        lambda model: aplens.collect_patterns("a text", model),
        lambda model: aplens.make_scenarios(["a text"], model, ["b"]),
        lambda model: aplens.show_heads("a text", model, "L0H1"),
    ],
)
def test_arguments_the_wrong_way_round_are_named(call, any_model):
    with pytest.raises(TypeError, match=r"the model.* comes first"):
        call(any_model)


def test_a_device_that_is_not_there_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(loading, "_Source", None)
    with pytest.raises(ValueError, match=r"device 'cuda:99' cannot be used on this machine"):
        aplens.load_model("smollm2-135m", device="cuda:99")


def test_a_type_goes_by_its_name(monkeypatch):
    assert loading._read_dtype("bfloat16") is torch.bfloat16
    for wrong in ("bfloat", "int64", "nn", 16):
        with pytest.raises(ValueError, match="dtype must be a floating-point type"):
            aplens.load_model("smollm2-135m", dtype=wrong)


def test_without_a_hub_the_models_that_need_none_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"someone/model was never.*smollm2-135m.*GGUF"):
        aplens.load_model("someone/model")


def test_a_missing_gguf_package_is_noticed_before_the_download(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(loading, "fetch_gguf", lambda name: pytest.fail("it was fetched"))
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'aplens\[gguf\]'"):
        loading._wheel_model_folder(next(iter(wheels.WHEEL_MODELS)))


@pytest.mark.real
def test_an_answer_without_its_blank_is_warned_of(smollm2):
    prompt = ["When Mary and John went out, John gave a drink to"]
    with pytest.warns(UserWarning, match="'Mary' stands without a blank.* write ' Mary'"):
        aplens.make_scenarios(smollm2, prompt, ["Mary"], [" John"])
    with pytest.warns(UserWarning, match="'John' stands without a blank"):
        aplens.make_scenarios(smollm2, prompt, [" Mary"], ["John"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aplens.make_scenarios(smollm2, prompt, [" Mary"], [" John"])
        aplens.make_scenarios(smollm2, ["print(", "The year 19", "今天"], ["x", "84", "天气"])
