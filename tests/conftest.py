"""Fixtures: small random hooked models for logic, the real SmolLM2 for what matters."""

from __future__ import annotations

import os
import shutil

# Nothing may wait for a hub that is not there; tests of hub code point at local folders.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from importlib.metadata import version

import pytest
import torch

pytest_plugins = ["study_fixtures"]

HAS_HOOKED = int(version("transformer-lens").partition(".")[0]) < 4
NO_HOOKED = "this TransformerLens has no HookedTransformer (removed in 4.0)"

requires_hooked = pytest.mark.skipif(not HAS_HOOKED, reason=NO_HOOKED)
requires_offloading = pytest.mark.skipif(
    HAS_HOOKED, reason="TransformerLens 3 itself refuses layers offloaded to disk"
)
KINDS = [pytest.param("hooked", marks=requires_hooked), "bridge"]


def make_tiny_hooked(**changes):
    if not HAS_HOOKED:
        pytest.skip(NO_HOOKED)
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    settings = {
        "n_layers": 3,
        "n_heads": 4,
        "d_model": 32,
        "d_head": 8,
        "d_mlp": 64,
        "n_ctx": 64,
        "d_vocab": 101,
        "act_fn": "gelu",
        "model_name": "tiny-hooked",
        "seed": 0,
        "device": "cpu",
    }
    return HookedTransformer(HookedTransformerConfig(**(settings | changes))).eval()


def make_tiny_hf(seed=0):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=3,
        n_head=4,
        n_embd=32,
        n_positions=64,
        vocab_size=101,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
        architectures=["GPT2LMHeadModel"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config).eval()
        for parameter in model.parameters():  # GPT-2's own initialization attends uniformly
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.25)
    return model


def make_tiny_bridge(seed=0, name="tiny-bridge"):
    from aplens.models.classes import build

    return build(
        "bridge",
        make_tiny_hf(seed),
        None,
        name=name,
        device="cpu",
        dtype=torch.float32,
    )


def make_any_tiny():
    """What `any_model` is, to be changed: a bridge that ran with gradients cannot be copied."""
    return make_tiny_hooked() if HAS_HOOKED else make_tiny_bridge()


def train_on(model):
    """What training in place does: every parameter is another one, the name stays."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)


@torch.no_grad()
def z_of(model, tokens):
    """Every head's output, by layer, of a model of three layers."""
    from aplens.models import attach_hooks, z_hook_name

    seen = {}
    hooks = [
        (z_hook_name(layer), lambda z, hook, layer=layer: seen.update({layer: z.clone()}))
        for layer in range(3)
    ]
    with attach_hooks(model, hooks):
        model(tokens)
    return seen


def make_broken(kind, value=float("nan")):
    """A small model with `value` in the query weights of head L1H2."""
    model = make_tiny_hooked() if kind == "hooked" else make_tiny_bridge()
    attention = model.blocks[1].attn
    with torch.no_grad():
        if kind == "hooked":
            attention.W_Q[2] = value
        else:
            attention.q.weight[16:24] = value
    return model


#: The files that take a minute or more.
LONG = ("notebooks", "docs", "study", "families", "views", "zoo", "circuits", "paper_study")


def pytest_collection_modifyitems(items):
    """Long files begin first: no worker waits for one at the end."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


@pytest.fixture(scope="session")
def tiny_hooked():
    return make_tiny_hooked()


@pytest.fixture(scope="session")
def tiny_bridge():
    return make_tiny_bridge()


@pytest.fixture(params=KINDS, scope="session")
def tiny_model(request):
    """A small model, of each class in turn."""
    return request.getfixturevalue(f"tiny_{request.param}")


@pytest.fixture(scope="session")
def any_model(request):
    """A small model for tests in which the class makes no difference."""
    return request.getfixturevalue("tiny_hooked" if HAS_HOOKED else "tiny_bridge")


@pytest.fixture(scope="session")
def other_model():
    """Another model than `any_model`."""
    return make_tiny_bridge(seed=1, name="tiny-other")


@pytest.fixture
def tiny_tokens():
    return torch.randint(0, 101, (5, 20), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="session")
def smollm2_hooked():
    if not HAS_HOOKED:
        pytest.skip(NO_HOOKED)
    from aplens import load_model

    return load_model("smollm2-135m", kind="hooked")


@pytest.fixture(scope="session")
def smollm2_bridge():
    from aplens import load_model

    return load_model("smollm2-135m", kind="bridge")


@pytest.fixture(scope="session")
def smollm2(request):
    """The real model, where the class makes no difference."""
    return request.getfixturevalue("smollm2_hooked" if HAS_HOOKED else "smollm2_bridge")


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    from transformers import AutoTokenizer

    from aplens.models.loading import _wheel_model_folder

    return AutoTokenizer.from_pretrained(_wheel_model_folder("smollm2-135m"))


@pytest.fixture(scope="session")
def chromium():
    """A headless browser that asks the network for nothing of its own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield browser
        browser.close()
