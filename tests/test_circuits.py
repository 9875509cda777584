from __future__ import annotations

import functools
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from conftest import HAS_HOOKED, KINDS, make_tiny_hooked
from families import D_VOCAB, FAMILIES, N_HEADS, make_hf, make_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from transformer_lens import patching

from aplens import Head, HeadRanking
from aplens.circuits import PatchingTable, activation_patch, logit_difference, path_patch
from aplens.heads import ModelShape
from aplens.models import attach_hooks, can_start_midway, describe_model, pattern_hook_name
from aplens.prompts import Prompts
from aplens.scenarios import Scenario, ScenarioError, Scenarios, make_scenarios

HAS_FUNCTION = hasattr(patching, "get_act_patch_direct_path")
CLEAN, CORRUPTED = torch.randint(
    1, D_VOCAB, (2, 3, 12), generator=torch.Generator().manual_seed(0)
).unbind()


def difference(prompts, right, wrong):
    """The metric of prompts as lists of token ids."""
    return logit_difference(
        Scenarios(
            Scenario("task", "text", "file", 1, "", tuple(prompt), answer, "own", rival)
            for prompt, answer, rival in zip(prompts, right, wrong, strict=True)
        )
    )


METRIC = difference(CLEAN.tolist(), [5, 6, 7], [8, 9, 10])


def run(model, tokens, *hooks):
    """The logits with hooks on, without the module under test."""
    with torch.no_grad(), attach_hooks(model, hooks):
        return model(tokens)


def cache(model, tokens, *names):
    seen = {}
    run(
        model,
        tokens,
        *((name, lambda x, hook, name=name: seen.update({name: x.clone()})) for name in names),
    )
    return seen


def write_by_hand(model, sender):
    """What the sender writes more in the clean run."""
    name = f"blocks.{sender.layer}.attn.hook_z"
    change = cache(model, CLEAN, name)[name] - cache(model, CORRUPTED, name)[name]
    return change[:, :, sender.head] @ model.blocks[sender.layer].attn.W_O[sender.head]


def path_by_hand(model, sender, receiver, component):
    """The metric when the receiver's own normed, projected copy of the residual has the write."""
    block = model.blocks[receiver.layer]
    before = f"blocks.{receiver.layer}.hook_resid_pre"
    residual = cache(model, CORRUPTED, before)[before] + write_by_hand(model, sender)
    weight = getattr(block.attn, f"W_{component.upper()}")[receiver.head]
    with torch.no_grad():
        own = block.ln1(residual) @ weight
        bias = getattr(block.attn, f"b_{component.upper()}")
        own = own if bias is None else own + bias.reshape(-1, weight.shape[-1])[receiver.head]

    def replace(value, hook):
        value = value.clone()
        value[:, :, receiver.head] = own
        return value

    name = f"blocks.{receiver.layer}.attn.hook_{component}"
    return METRIC(run(model, CORRUPTED, (name, replace))).item()


def hooks_of(model):
    return {
        (name, len(point.fwd_hooks), len(point._forward_hooks))
        for name, point in model.hook_dict.items()
    }


@pytest.mark.parametrize("activation", ["z", "q", "k", "v", "pattern"])
def test_activation_patching_is_what_a_hook_does_by_hand(tiny_model, activation):
    heads = (Head(2, 1), Head(0, 3))
    table = activation_patch(
        tiny_model, CLEAN, CORRUPTED, heads, metric=METRIC, activation=activation
    )
    place = 1 if activation == "pattern" else 2
    for head, value in zip(heads, table.frame["metric"], strict=True):
        name = f"blocks.{head.layer}.attn.hook_{activation}"
        clean = cache(tiny_model, CLEAN, name)[name]

        def replace(x, hook, clean=clean, head=head):
            keep = torch.arange(x.shape[place]) == head.head
            return torch.where(keep.reshape([-1] + [1] * (3 - place)), clean, x)

        expected = METRIC(run(tiny_model, CORRUPTED, (name, replace))).item()
        assert value == pytest.approx(expected, abs=1e-5)
    clean, corrupted = (METRIC(run(tiny_model, tokens)).item() for tokens in (CLEAN, CORRUPTED))
    assert (table.clean, table.corrupted) == pytest.approx((clean, corrupted), abs=1e-6)
    shares = (table.frame["metric"] - corrupted) / (clean - corrupted)
    torch.testing.assert_close(
        torch.tensor(table.frame["recovered"]), torch.tensor(shares), atol=1e-5, rtol=0
    )
    assert list(table.frame["name"]) == ["L2H1", "L0H3"]
    assert list(table.frame["activation"]) == [activation] * 2


@pytest.mark.parametrize("activation", ["z", "pattern"])
def test_positions_are_patched_one_at_a_time(tiny_model, activation):
    table = activation_patch(
        tiny_model,
        CLEAN,
        CORRUPTED,
        "L1H2",
        metric=METRIC,
        activation=activation,
        by_position=True,
    )
    assert list(table.frame["position"]) == list(range(12))
    name = f"blocks.1.attn.hook_{activation}"
    clean = cache(tiny_model, CLEAN, name)[name]

    def replace(x, hook):
        x = x.clone()
        at = (slice(None), 2, 7) if activation == "pattern" else (slice(None), 7, 2)
        x[at] = clean[at]
        return x

    expected = METRIC(run(tiny_model, CORRUPTED, (name, replace))).item()
    assert table.frame["metric"][7] == pytest.approx(expected, abs=1e-5)
    assert table.frame["metric"].nunique() > 6


def test_the_only_head_recovers_everything_where_nothing_else_differs():
    """The last token is the same, and what came before reaches it only through the head."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from aplens.models.classes import build

    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=1, n_embd=16, n_positions=16, vocab_size=101)
    hf_model = GPT2LMHeadModel(config).eval()
    hf_model.set_attn_implementation("eager")
    options = {"name": "one-head", "device": "cpu", "dtype": torch.float32}
    model = build("bridge", hf_model, None, **options)
    corrupted = torch.cat([CORRUPTED[:, :-1], CLEAN[:, -1:]], dim=1)
    table = activation_patch(model, CLEAN, corrupted, "L0H0", metric=METRIC)
    assert table.frame["recovered"].item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("component", ["q", "k", "v"])
def test_a_path_carries_the_senders_write_into_one_receiver_alone(tiny_model, component):
    senders, receivers = (Head(0, 1), Head(1, 3)), (Head(2, 0), Head(1, 2))
    table = path_patch(
        tiny_model, CLEAN, CORRUPTED, senders, receivers, metric=METRIC, component=component
    )
    frame = table.to_frame()
    assert list(zip(frame["sender"], frame["receiver"], strict=True)) == [
        ("L0H1", "L2H0"),
        ("L0H1", "L1H2"),
        ("L1H3", "L2H0"),  # and no path from L1H3 to L1H2
    ]
    for row in frame.itertuples():
        sender = Head(row.sender_layer, row.sender_head)
        receiver = Head(row.receiver_layer, row.receiver_head)
        expected = path_by_hand(tiny_model, sender, receiver, component)
        assert row.metric == pytest.approx(expected, abs=1e-5)
        assert row.component == component
    assert (frame["metric"] - table.corrupted).abs().max() > 1e-3


@pytest.mark.skipif(not HAS_HOOKED, reason="the forked inputs of a HookedTransformer")
@pytest.mark.parametrize("normalization", ["LN", "RMS", "RMSPre", None])
def test_hooks_give_what_the_forked_inputs_give(normalization):
    """`use_split_qkv_input` gives each head its own residual stream to add the write to."""
    model = make_tiny_hooked(normalization_type=normalization)
    sender, receiver = Head(0, 2), Head(1, 3)
    table = path_patch(model, CLEAN, CORRUPTED, sender, receiver, metric=METRIC, component="k")
    write = write_by_hand(model, sender)

    def add(value, hook):
        value = value.clone()
        value[:, :, receiver.head] += write
        return value

    model.set_use_split_qkv_input(True)
    expected = METRIC(run(model, CORRUPTED, ("blocks.1.hook_k_input", add))).item()
    assert table.frame["metric"].item() == pytest.approx(expected, abs=1e-5)


#: Where in each Hugging Face model a layer, its norm before attention, and a fused projection of
#: queries, keys and values are; the others have `input_layernorm` and one projection each.
LAYERS = {
    "gpt2": "transformer.h.{}",
    "bloom": "transformer.h.{}",
    "pythia": "gpt_neox.layers.{}",
    "opt": "model.decoder.layers.{}",
}
NORMS = {"gpt2": "ln_1", "opt": "self_attn_layer_norm"}
FUSED = {
    "gpt2": "attn.c_attn",
    "bloom": "self_attention.query_key_value",
    "pythia": "attention.query_key_value",
}
OWN_KEYS = ("gpt2", "pythia", "bloom", "opt")  # no head shares its keys and values
COMPONENTS = [
    (family, component)
    for family in FAMILIES
    if family != "gemma3"  # which is refused: it normalizes what its heads write
    for component in ("qkv" if family in OWN_KEYS else "q")
]


@functools.cache
def make_hf_once(family):
    return make_hf(family)


@functools.cache
def paths_in_hugging_face(family, sender, layer_index, component):
    """The metric of the original model, without TransformerLens and its hooks, for each head."""
    model = make_hf_once(family)
    layer = model.get_submodule(LAYERS.get(family, "model.layers.{}").format(layer_index))
    norm = layer.get_submodule(NORMS.get(family, "input_layernorm"))
    project = layer.get_submodule(FUSED.get(family, f"self_attn.{component}_proj"))
    write_out = model.get_submodule(FAMILIES[family].projection.format(sender.layer))

    def entering(module, tokens):
        kept = []
        handle = module.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
        with handle:
            model(tokens, use_cache=False)
        return kept[0].clone()

    def of_receiver(projected, head):
        place = "qkv".index(component)
        if family not in FUSED:
            return projected.unflatten(-1, (N_HEADS, -1))[..., head, :]
        if family == "gpt2":
            return projected.unflatten(-1, (3, N_HEADS, -1))[..., place, head, :]
        return projected.unflatten(-1, (N_HEADS, 3, -1))[..., head, place, :]

    def measure(head):
        def replace(module, inputs, projected):
            projected = projected.clone()
            of_receiver(projected, head)[:] = of_receiver(received, head)
            return projected

        with project.register_forward_hook(replace):
            return METRIC(model(CORRUPTED, use_cache=False).logits).item()

    with torch.no_grad():
        before = entering(write_out, CORRUPTED)
        after = before.clone()
        of_sender = after.unflatten(-1, (N_HEADS, -1))[..., sender.head, :]
        clean = entering(write_out, CLEAN).unflatten(-1, (N_HEADS, -1))
        of_sender[:] = clean[..., sender.head, :]
        write = write_out(after) - write_out(before)
        received = project(norm(entering(layer, CORRUPTED) + write))
        return [measure(head) for head in range(N_HEADS)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("family", "component"), COMPONENTS)
def test_a_path_is_that_of_the_hugging_face_model(family, component, kind):
    if kind == "hooked" and not FAMILIES[family].in_hooked:
        pytest.skip("HookedTransformer cannot hold it")
    model, sender = make_model(family, kind), Head(0, 1)
    heads = [Head(1, head) for head in range(N_HEADS)]
    expected = paths_in_hugging_face(family, sender, 1, component)
    for receivers in (heads, None):
        table = path_patch(
            model, CLEAN, CORRUPTED, sender, receivers, metric=METRIC, component=component
        )
        assert list(table.frame["receiver"]) == [str(head) for head in heads]
        assert table.frame["metric"].to_list() == pytest.approx(expected, abs=1e-5)
    assert (table.frame["metric"] - table.corrupted).abs().max() > 1e-3


@pytest.mark.skipif(not HAS_FUNCTION, reason="get_act_patch_direct_path came with 4.0")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_transformer_lens_finds_the_same_where_it_is_right(family):
    model, name = make_model(family, "bridge"), "blocks.0.attn.hook_z"
    table = path_patch(model, CLEAN, CORRUPTED, "L0H1", metric=METRIC)
    expected = patching.get_act_patch_direct_path(
        model,
        CORRUPTED,
        cache(model, CLEAN, name),
        cache(model, CORRUPTED, name),
        METRIC,
        0,
        1,
        "q",
        verbose=False,
    )
    found = torch.tensor(table.frame["metric"].to_numpy()).float()
    torch.testing.assert_close(found, expected[1], atol=1e-5, rtol=1e-5)


def test_without_receivers_every_later_head_receives(tiny_model):
    table = path_patch(tiny_model, CLEAN, CORRUPTED, "L1H0, L2H1", metric=METRIC)
    assert list(table.frame["receiver"]) == ["L2H0", "L2H1", "L2H2", "L2H3"]
    expected = path_by_hand(tiny_model, Head(1, 0), Head(2, 3), "q")
    assert table.frame["metric"].iloc[-1] == pytest.approx(expected, abs=1e-5)


def test_the_direct_effect_on_the_logits_skips_all_later_layers(tiny_model):
    senders = (Head(0, 1), Head(2, 3))
    table = path_patch(tiny_model, CLEAN, CORRUPTED, senders, "logits", metric=METRIC)
    assert set(table.frame["receiver"]) == {"logits"}
    assert table.frame[["receiver_layer", "receiver_head", "component"]].isna().all(axis=None)
    final = cache(tiny_model, CORRUPTED, "blocks.2.hook_resid_post")["blocks.2.hook_resid_post"]
    for sender, value in zip(senders, table.frame["metric"], strict=True):
        with torch.no_grad():
            residual = final + write_by_hand(tiny_model, sender)
            expected = METRIC(tiny_model.unembed(tiny_model.ln_final(residual))).item()
        assert value == pytest.approx(expected, abs=1e-5)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    heads=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=3),
    component=st.sampled_from(["q", "k", "v"]),
)
def test_patching_a_run_into_itself_changes_nothing(tiny_model, heads, component):
    heads = [Head(*head) for head in heads]
    with pytest.warns(UserWarning, match="nothing to recover"):
        single = activation_patch(
            tiny_model, CLEAN, CLEAN, heads, metric=METRIC, activation=component
        )
    with pytest.warns(UserWarning, match="nothing to recover"):
        path = path_patch(
            tiny_model, CLEAN, CLEAN, heads, "L2H0, L1H1", metric=METRIC, component=component
        )
    for table in (single, path):
        assert table.frame["metric"].to_list() == pytest.approx(
            [table.clean] * len(table), abs=1e-5
        )
        assert table.frame["recovered"].isna().all()
        for refused in (table.plot, lambda table=table: table.top(1)):
            with pytest.raises(ValueError, match="nothing to recover"):
                refused()


@pytest.mark.parametrize("component", ["k", "v"])
def test_shared_keys_and_values_are_refused_with_the_numbers(component):
    model = make_model("llama", "bridge")
    with pytest.raises(ValueError, match="2 heads, shared by 4 query heads"):
        activation_patch(model, CLEAN, CORRUPTED, "L1H3", metric=METRIC, activation=component)
    for receivers in (None, "L1H3"):
        with pytest.raises(ValueError, match="2 heads, shared by 4 query heads"):
            path_patch(
                model, CLEAN, CORRUPTED, "L0H1", receivers, metric=METRIC, component=component
            )


@pytest.mark.parametrize("receivers", [None, "L1H0", "logits"])
def test_a_normalized_write_is_refused(receivers):
    model = make_model("gemma3", "bridge")
    with pytest.raises(ValueError, match="layer 0 of tiny-gemma3 normalizes or scales"):
        path_patch(model, CLEAN, CORRUPTED, "L0H1", receivers, metric=METRIC)
    assert len(activation_patch(model, CLEAN, CORRUPTED, "L0H1", metric=METRIC)) == 1


@pytest.mark.parametrize("family", ["gpt2", "pythia", "llama", "starcoder2", "mistral"])
@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)],  # a few steps of a logit between 1 and 4
)
def test_families_that_write_plainly_are_patched(family, dtype, rounding):
    model = make_model(family, "bridge", dtype)
    table = path_patch(model, CLEAN, CORRUPTED, "L0H1", "L1H3", metric=METRIC)
    expected = path_by_hand(model, Head(0, 1), Head(1, 3), "q")
    assert table.frame["metric"].item() == pytest.approx(expected, abs=rounding)


def test_compatibility_mode_gives_the_same():
    model, processed = make_model("gpt2", "bridge"), make_model("gpt2", "bridge")
    processed.enable_compatibility_mode()
    tables = [
        path_patch(each, CLEAN, CORRUPTED, "L0H1", "L1H3", metric=METRIC)
        for each in (model, processed)
    ]
    first, second = (table.frame["recovered"].item() for table in tables)
    assert first == pytest.approx(second, abs=1e-3)


def test_other_peoples_hooks_survive(tiny_model):
    calls = []
    with attach_hooks(tiny_model, [("blocks.0.attn.hook_z", lambda z, hook: calls.append(1))]):
        before = hooks_of(tiny_model)
        activation_patch(tiny_model, CLEAN, CORRUPTED, "L0H0", metric=METRIC)
        assert len(calls) == 3
        for receivers in (None, "L1H0", "logits"):
            path_patch(tiny_model, CLEAN, CORRUPTED, "L0H0", receivers, metric=METRIC)
        assert hooks_of(tiny_model) == before


@pytest.mark.parametrize("receivers", [None, "L1H0", "logits"])
@pytest.mark.parametrize("fails_at", [1, 3])
def test_everything_comes_off_when_the_metric_fails(tiny_model, receivers, fails_at):
    bar, before = patching.tqdm, hooks_of(tiny_model)
    calls = []

    def metric(logits):
        calls.append(1)
        return METRIC(logits) if len(calls) < fails_at else torch.tensor(math.nan)

    with pytest.raises(ValueError, match="metric must be finite, got nan"):
        path_patch(tiny_model, CLEAN, CORRUPTED, "L0H0", receivers, metric=metric)
    calls.clear()
    with pytest.raises(ValueError, match="metric must be finite, got nan"):
        activation_patch(tiny_model, CLEAN, CORRUPTED, "L0H0", metric=metric)
    assert hooks_of(tiny_model) == before
    assert patching.tqdm is bar


def test_everything_comes_off_when_a_run_fails(tiny_model):
    def fail(z, hook):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of luck")

    for patch in (
        lambda: activation_patch(tiny_model, CLEAN, CORRUPTED, "L1H0", metric=METRIC),
        lambda: path_patch(tiny_model, CLEAN, CORRUPTED, "L0H0", "L1H0", metric=METRIC),
        lambda: path_patch(tiny_model, CLEAN, CORRUPTED, "L0H0", metric=METRIC),
    ):
        calls, before = [], hooks_of(tiny_model)
        with (
            attach_hooks(tiny_model, [("blocks.1.attn.hook_z", fail)]),
            pytest.raises(RuntimeError, match="out of luck"),
        ):
            patch()
        assert hooks_of(tiny_model) == before


def test_nothing_is_printed_and_progress_is_told(tiny_model, capsys):
    told = []
    options = {"metric": METRIC, "progress": lambda done, total: told.append((done, total))}
    activation_patch(tiny_model, CLEAN, CORRUPTED, "L0H0, L0H1", **options)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    told.clear()
    path_patch(tiny_model, CLEAN, CORRUPTED, "L1H0", **options)
    assert told[-1] == (6, 6)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_a_ranking_is_a_selection(tiny_model):
    scores = {"layer": [2, 0], "head": [1, 3], "importance": [0.9, 0.1]}
    zeros = {name: [0.0, 0.0] for name in ("mean", "toward_incorrect", "toward_correct")}
    ranking = HeadRanking(pd.DataFrame(scores | zeros), model=ModelShape("tiny", 3, 4))
    table = activation_patch(tiny_model, CLEAN, CORRUPTED, ranking, metric=METRIC)
    assert list(table.frame["name"]) == ["L2H1", "L0H3"]


def test_padded_prompts_are_patched_as_if_each_stood_alone(tiny_model):
    clean, corrupted = ([each[0, :7].tolist(), each[1].tolist()] for each in (CLEAN, CORRUPTED))
    metric = difference(clean, [5, 6], [8, 9])
    name, expected = "blocks.1.attn.hook_z", []
    for first, second, right, wrong in zip(clean, corrupted, [5, 6], [8, 9], strict=True):
        z = cache(tiny_model, torch.tensor([first]), name)[name]

        def replace(x, hook, z=z):
            x[:, :, 1] = z[:, :, 1]
            return x

        tokens = torch.tensor([second])
        runs = [run(tiny_model, tokens, (name, replace)), run(tiny_model, tokens)]
        expected.append([float(logits[0, -1, right] - logits[0, -1, wrong]) for logits in runs])
    patched, unpatched = torch.tensor(expected).mean(0).tolist()
    table = activation_patch(tiny_model, clean, corrupted, "L1H1", metric=metric)
    assert table.frame["metric"].item() == pytest.approx(patched, abs=1e-5)
    assert table.corrupted == pytest.approx(unpatched, abs=1e-5)

    together = path_patch(tiny_model, clean, corrupted, "L0H1", "L2H0", metric=metric)
    alone = [
        path_patch(tiny_model, *pair, "L0H1", "L2H0", metric=difference(pair[0], [right], [wrong]))
        for *pair, right, wrong in (
            (clean[:1], corrupted[:1], 5, 8),
            (clean[1:], corrupted[1:], 6, 9),
        )
    ]
    expected = sum(table.frame["metric"].item() for table in alone) / 2
    assert together.frame["metric"].item() == pytest.approx(expected, abs=1e-5)


def test_patched_passes_begin_at_the_layer_they_change(tiny_model):
    can_start_midway(tiny_model)  # asked once, by passes of its own
    passes = []
    with attach_hooks(tiny_model, [(pattern_hook_name(1), lambda x, hook: passes.append(hook))]):
        activation_patch(tiny_model, CLEAN, CORRUPTED, "L2H0, L2H1", metric=METRIC)
        path_patch(tiny_model, CLEAN, CORRUPTED, "L0H0, L1H1", "logits", metric=METRIC)
        path_patch(tiny_model, CLEAN, CORRUPTED, "L0H0", "L2H1, L2H2", metric=METRIC)
    assert len(passes) == 6  # the clean and the corrupted run of each
    passes.clear()
    with attach_hooks(tiny_model, [(pattern_hook_name(2), lambda x, hook: passes.append(hook))]):
        path_patch(tiny_model, CLEAN, CORRUPTED, "L0H0, L1H1", "L2H1, L2H2", metric=METRIC)
    assert len(passes) == 2 + 4 + 2  # one a pair, and one more a sender


def test_gradients_are_not_needed_and_not_kept(tiny_model):
    seen = []

    def metric(logits):
        seen.append(logits.requires_grad)
        return METRIC(logits)

    with torch.enable_grad():
        path_patch(tiny_model, CLEAN, CORRUPTED, "L0H0", "L1H0", metric=metric)
    assert seen == [False] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corrupted": CORRUPTED[:, :-1]}, r"\(3, 12\) and \(3, 11\)"),
        ({"corrupted": CORRUPTED[:2]}, r"\(3, 12\) and \(2, 12\)"),
        ({"heads": "L3H0"}, "layer 3 is out of range for 3 layers"),
        ({"heads": "L0H4"}, "head 4 is out of range for 4 heads"),
        ({"heads": []}, "no heads were chosen"),
        ({"activation": "result"}, "activation must be one of .* got 'result'"),
        ({"metric": lambda logits: logits[:, -1, 0]}, r"metric must be a scalar, got shape \(3,\)"),
        ({"metric": lambda logits: torch.tensor(math.inf)}, "metric must be finite, got inf"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny_model, changes, message):
    asked = {"clean": CLEAN, "corrupted": CORRUPTED, "heads": "L0H0", "metric": METRIC} | changes
    with pytest.raises(ValueError, match=message):
        activation_patch(tiny_model, **asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"receivers": "L1H0, L0H0"}, "sender is in layer 1, the last receiver in layer 1"),
        ({"senders": "L2H0", "receivers": None}, "first sender is in layer 2"),
        ({"receivers": "L3H0"}, "layer 3 is out of range"),
        ({"component": "z"}, "component must be one of .* got 'z'"),
        ({"corrupted": CORRUPTED[:2]}, r"\(3, 12\) and \(2, 12\)"),
    ],
)
def test_paths_that_make_no_sense_are_refused(tiny_model, changes, message):
    asked = {"clean": CLEAN, "corrupted": CORRUPTED, "senders": "L1H0", "metric": METRIC} | changes
    with pytest.raises(ValueError, match=message):
        path_patch(tiny_model, **asked)


def test_prompts_of_other_lengths_than_their_clean_ones_are_refused(tiny_model):
    clean = Prompts.from_ids([[1, 2, 3], [4, 5]])
    corrupted = Prompts.from_ids([[1, 2], [3, 4, 5]])
    with pytest.raises(ValueError, match=r"lengths \[3, 2\] and \[2, 3\]"):
        activation_patch(tiny_model, clean, corrupted, "L0H0", metric=METRIC)


def test_a_bridge_in_training_mode_is_refused():
    model = make_model("gpt2", "bridge").train()
    with pytest.raises(ValueError, match=r"tiny-gpt2 is in training mode: call model.eval\(\)"):
        activation_patch(model, CLEAN, CORRUPTED, "L0H0", metric=METRIC)
    model.eval()
    assert len(activation_patch(model, CLEAN, CORRUPTED, "L0H0", metric=METRIC)) == 1


@pytest.mark.skipif(not HAS_HOOKED, reason="a HookedTransformer")
def test_attention_only_models_and_left_padding_tokenizers_are_patched():
    model = make_tiny_hooked(attn_only=True)
    table = path_patch(model, CLEAN, CORRUPTED, "L0H0", "L1H0", metric=METRIC)
    assert table.frame["metric"].item() == pytest.approx(
        path_by_hand(model, Head(0, 0), Head(1, 0), "q"), abs=1e-5
    )
    # Tokens that look like padding at a prompt's start are its own all the same.
    clean, corrupted = CLEAN.clone(), CORRUPTED.clone()
    clean[:, 0] = corrupted[:, 0] = 0
    expected = activation_patch(model, clean, corrupted, "L0H0", metric=METRIC)
    model.tokenizer = SimpleNamespace(padding_side="left", pad_token_id=0, bos_token_id=1)
    found = activation_patch(model, clean, corrupted, "L0H0", metric=METRIC)
    assert found.frame["metric"].item() == pytest.approx(expected.frame["metric"].item())


def test_the_logit_difference_reads_each_prompts_last_token():
    logits = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4) ** 2
    expected = ((logits[0, 1, 3] - logits[0, 1, 0]) + (logits[1, 2, 2] - logits[1, 2, 1])) / 2
    assert difference([[1, 2], [1, 2, 3]], [3, 2], [0, 1])(logits) == expected
    expected = ((logits[0, 2, 3] - logits[0, 2, 0]) + (logits[1, 2, 2] - logits[1, 2, 1])) / 2
    assert difference([[3, 2, 1], [1, 2, 3]], [3, 2], [0, 1])(logits) == expected


@pytest.mark.parametrize(
    ("right", "wrong", "error", "message"),
    [
        ([1, 2], [3, 2], ValueError, "prompt 1 has token 2 as right and as wrong"),
        ([1, -1], [3, 2], ValueError, "token ids must be 0 or more, got -1"),
        ([1, 2], [3, None], ScenarioError, "1 of 2 scenarios have no wrong answer"),
        ([], [], ScenarioError, "there are no scenarios"),
    ],
)
def test_a_logit_difference_that_makes_no_sense_is_refused(right, wrong, error, message):
    with pytest.raises(error, match=message):
        difference([[1]] * len(right), right, wrong)


def test_a_logit_difference_of_no_scenarios_or_of_other_prompts_is_refused():
    with pytest.raises(TypeError, match=r"expected scenarios, such as .* got list"):
        logit_difference([1])
    with pytest.raises(ValueError, match="expected logits of 1 prompts, the longest of 3"):
        difference([[1, 2, 3]], [1], [2])(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="the longest of 2 tokens, got 1 of 3"):
        difference([[1, 2]], [1], [2])(torch.zeros(1, 3, 4))
    with pytest.raises(ValueError, match="token id 4 is not in a vocabulary of 4"):
        difference([[1, 2, 3]], [1], [4])(torch.zeros(1, 3, 4))


def test_top_orders_heads_by_their_best_row(tiny_model):
    heads = [Head(0, head) for head in range(4)] + [Head(1, head) for head in range(4)]
    table = activation_patch(tiny_model, CLEAN, CORRUPTED, heads, metric=METRIC)
    frame = table.to_frame().sort_values("recovered", ascending=False)
    assert [str(head) for head in table.top(3)] == list(frame["name"][:3])
    assert len(table.top(100)) == 8
    frame["recovered"] = 0.0
    assert table.frame["recovered"].abs().max() > 0  # a copy
    with pytest.raises(ValueError, match="k must be 0 or more"):
        table.top(-1)
    table = path_patch(tiny_model, CLEAN, CORRUPTED, heads, metric=METRIC)
    best = table.to_frame().nlargest(1, "recovered")["sender"].item()
    assert str(table.top(1)[0]) == best


def test_bars_show_the_heads_that_moved_the_metric_furthest(tiny_model):
    heads = describe_model(tiny_model).heads
    table = activation_patch(tiny_model, CLEAN, CORRUPTED, heads, metric=METRIC)
    figure = table.plot(k=5)
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    drawn = [bar.get_width() for bar in axes.patches]
    furthest = table.frame["recovered"].abs().nlargest(5).index
    assert drawn == sorted(table.frame["recovered"][furthest])
    assert "recovered" in axes.get_xlabel()
    logits = path_patch(tiny_model, CLEAN, CORRUPTED, heads, "logits", metric=METRIC)
    assert len(logits.plot().axes[0].patches) == len(heads)
    with pytest.raises(ValueError, match="k must be 1 or more"):
        table.plot(k=0)


def test_maps_put_each_share_in_its_place(tiny_model):
    senders = (Head(1, 1), Head(0, 2))
    table = path_patch(tiny_model, CLEAN, CORRUPTED, senders, "L2H0, L1H3", metric=METRIC)
    axes = table.plot().axes[0]
    shares = table.frame["recovered"]
    drawn = torch.tensor(axes.images[0].get_array().filled(math.nan))
    expected = torch.tensor([[math.nan, shares[0]], [shares[2], shares[1]]])
    torch.testing.assert_close(drawn, expected.double(), equal_nan=True)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["L1H3", "L2H0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["L1H1", "L0H2"]
    table = activation_patch(tiny_model, CLEAN, CORRUPTED, senders, metric=METRIC, by_position=True)
    axes = table.plot().axes[0]
    assert axes.images[0].get_array().shape == (2, 12)
    written = [f"{token} ({i})" for i, token in enumerate(table.frame["token"][:12])]
    assert [label.get_text() for label in axes.get_xticklabels()] == written
    ids = CLEAN[0].tolist()
    same = [len(set(ids)) == 1 for ids in CLEAN.T.tolist()]
    assert written == [f"{ids[i]}{'' if same[i] else ', …'} ({i})" for i in range(12)]


def make_table_of_paths(senders, receivers, share=0.5):
    rows = [
        (f"L1H{s}", 1, s, f"L{2 + r // 12}H{r % 12}", 2 + r // 12, r % 12, share * (-1) ** r)
        for s in range(senders)
        for r in range(receivers)
    ]
    names = ["sender", "sender_layer", "sender_head"]
    columns = [*names, "receiver", "receiver_layer", "receiver_head", "recovered"]
    return PatchingTable(pd.DataFrame(rows, columns=columns), 1.0, 0.0)


@pytest.mark.parametrize(("share", "full"), [(0.02, 0.25), (0.8, 0.8)])
def test_small_shares_look_small(share, full):
    figure = make_table_of_paths(2, 5, share).plot()
    assert figure.axes[0].images[0].get_clim() == (-full, full)
    bars = make_table_of_paths(3, 1, share).to_frame()
    bars["receiver_layer"] = None
    (axes,) = PatchingTable(bars, 1.0, 0.0).plot().axes
    assert axes.get_xlim()[1] >= full


@pytest.mark.parametrize(("senders", "receivers"), [(1, 1), (2, 60), (60, 3)])
def test_no_label_of_a_map_is_clipped_and_missing_ones_are_counted(senders, receivers):
    figure = make_table_of_paths(senders, receivers).plot()
    figure.draw_without_rendering()
    axes, colorbar = figure.axes
    labels = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    for text in [*labels, axes.xaxis.label, axes.yaxis.label, colorbar.yaxis.label]:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        assert box.y1 <= figure.bbox.y1
    assert axes.get_xlabel() == ("receiver (one in 2 named)" if receivers > 30 else "receiver")
    assert axes.get_ylabel() == ("sender (one in 2 named)" if senders > 45 else "sender")
    assert axes.get_yticklabels()[-1].get_text() == f"L1H{senders - 1}"


def test_layers_without_attention_are_left_out():
    """A hybrid, which TransformerLens's own function refuses: attention in layers 1 and 3 only."""
    from transformers import JambaConfig, JambaForCausalLM

    from aplens.models.classes import build

    config = JambaConfig(
        vocab_size=D_VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=1,
        mamba_d_state=4,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
        pad_token_id=0,
        architectures=["JambaForCausalLM"],
    )
    torch.manual_seed(0)
    hf_model = JambaForCausalLM(config).eval()
    hf_model.set_attn_implementation("eager")
    options = {"name": "tiny-jamba", "device": "cpu", "dtype": torch.float32}
    model = build("bridge", hf_model, None, **options)
    table = path_patch(model, CLEAN, CORRUPTED, "L1H0, L3H1", metric=METRIC)
    assert list(table.frame["receiver"]) == ["L3H0", "L3H1", "L3H2", "L3H3"]
    for patch in (activation_patch, path_patch):
        with pytest.raises(ValueError, match="L2H0: these layers of tiny-jamba have no attention"):
            patch(model, CLEAN, CORRUPTED, "L2H0", metric=METRIC)


@pytest.mark.real
def test_some_head_of_smollm2_carries_the_indirect_object(smollm2):
    names = [(" Mary", " John"), (" Tom", " James")]
    text = "When{} and{} went to the store,{} gave a drink to"
    clean = [text.format(a, b, b) for a, b in names]
    corrupted = [text.format(a, b, a) for a, b in names]
    metric = logit_difference(make_scenarios(smollm2, clean, *zip(*names, strict=True)))
    heads = {17: range(2, 8), 20: [0]}
    table = activation_patch(smollm2, clean, corrupted, heads, metric=metric)
    assert table.clean > 1 > -1 > table.corrupted
    assert table.frame["recovered"].map(math.isfinite).all()
    assert table.frame["recovered"].max() > 0.1
    assert table.frame["recovered"].median() < 0.1  # a few heads do it

    senders = table.top(2)
    direct = path_patch(smollm2, clean, corrupted, senders, "logits", metric=metric)
    queries = path_patch(smollm2, clean, corrupted, senders, "L24H0", metric=metric)
    assert (len(direct), len(queries)) == (2, 2)
    for paths in (direct, queries):
        assert paths.frame["recovered"].map(math.isfinite).all()
        assert (paths.clean, paths.corrupted) == pytest.approx(
            (table.clean, table.corrupted), rel=1e-4
        )
