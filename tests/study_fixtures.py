"""A small study: its file, its corpus and its model, a GPT-2 that knows a little of it."""

from __future__ import annotations

import zipfile

import pytest
from typer.testing import CliRunner

SOURCE = """class Adder{i} {{
    // a comment with brackets ) and operators += that no task may find
    private int total{i} = {i};
    private String name = "adder {i}";
    boolean add(int value, boolean twice) {{
        if (value > {i} && !twice) {{
            total{i} += value * {j};
            return true;
        }}
        System.out.println(name + value);
        for (int k = 0; k < {j}; k++) {{
            total{i} -= Math.max(k, value);
        }}
        return total{i} == value || twice;
    }}
}}
"""

STUDY = """
title = "small </title><script>alert(1)</script>"
[model]
name = "{model}"
kind = "{kind}"
[scenarios]
corpus = ["jdk-that-is-not-there", "{corpus}"]
tasks = ["identifiers", "closing_bracket", "stop", "eol", "numeric_literals", "keywords"]
per_task = 40
per_file = 4
context_length = 32
[mae]
config = {{ n_ctx = 32, patch_size = 8, encoder_dim = 16, encoder_depth = 1, decoder_depth = 1 }}
[mae.training]
patterns = 400
[rank]
folds = 3
reducer = "pca"
features = "statistics"
prompts = 20
verify = 4
[ablate]
sizes = [1, 3]
random_seeds = [0]
"""


def aplens_command(*arguments):
    """A run of the `aplens` command in this process: one of its own imports for seven seconds."""
    from aplens.cli import app

    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="session")
def java_zip(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "src.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(80):
            archive.writestr(f"demo/Adder{i}.java", SOURCE.format(i=i, j=i % 7 + 2))
    return path


@pytest.fixture(scope="session")
def tiny_saved(tmp_path_factory, java_zip):
    """A small GPT-2 with a tokenizer trained on the corpus, taught a little Java so that it is
    sometimes right."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    texts = [SOURCE.format(i=i, j=i % 7 + 2) for i in range(80)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=len(fast),
        bos_token_id=0, eos_token_id=0, architectures=["GPT2LMHeadModel"],
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        ids = torch.tensor([token for text in texts for token in fast(text).input_ids])
        for _ in range(120):
            starts = torch.randint(0, len(ids) - 64, (16,))
            batch = torch.stack([ids[start : start + 64] for start in starts])
            loss = model(batch, labels=batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    folder = tmp_path_factory.mktemp("model") / "tiny-java"
    model.eval().save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
