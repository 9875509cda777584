"""Train a small GPT-2, or a small Pythia, on Python's standard library.

    python benchmarks/train_gpt2.py runs/gpt2-stdlib --minutes 10
    python benchmarks/train_gpt2.py runs/pythia-mixed --shape pythia --prose --seed 1
    cd examples
    python -m paper evaluate studies/aplens-base.toml --mae aplens-base --model ../runs/gpt2-stdlib

What it makes is a Hugging Face folder with its tokenizer, so `aplens.load_model` reads it as either
class: LayerNorm, 4 layers × 8 heads, a context of 256; a GPT-2 has learned positions, a Pythia
rotary ones in a quarter of a head's width, and attention and MLP side by side. The same command
goes on from where the folder stands, after an interrupt too. A twentieth of the files is held out.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import tempfile
import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

import aplens
from aplens._io import read_json, write_json
from aplens.patterns import DETECTED, template_scores
from aplens.scenarios import english_prose, python_standard_library

N_CTX = 256
VOCABULARY = 1024
END = "<|endoftext|>"
BATCH = 8
LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
DECAY_SHARE = 0.3  # of the minutes, at whose end the learning rate falls to 0
SAVE_EVERY = 60.0  # seconds
OPTIMIZER, TRAINING = "optimizer.safetensors", "training.json"


def split_texts(prose: bool) -> tuple[list[str], list[str]]:
    """The files' texts to train on, and those held out, which their names decide."""
    train: list[str] = []
    held_out: list[str] = []
    corpora = [python_standard_library(), *([english_prose()] if prose else [])]
    for file in chain.from_iterable(corpus.files() for corpus in corpora):
        digest = hashlib.sha256(file.path.encode()).digest()
        (held_out if digest[0] % 20 == 0 else train).append(file.text)
    return train, held_out


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Tensor:
    """All texts as one row of token ids, each closed by the end-of-text token."""
    encoded = tokenizer(list(texts), verbose=False).input_ids
    end = tokenizer.eos_token_id
    return torch.tensor([token for ids in encoded for token in (*ids, end)])


def new_model(shape: str, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    common = {
        "vocab_size": VOCABULARY,
        "initializer_range": 0.05,  # their own 0.02 is for widths of 768 and more
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if shape == "pythia":
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                num_hidden_layers=4,
                num_attention_heads=8,
                hidden_size=128,
                intermediate_size=512,
                max_position_embeddings=N_CTX,
                **common,
            )
        )
    config = GPT2Config(
        n_layer=4,
        n_head=8,
        n_embd=128,
        n_positions=N_CTX,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **common,
    )
    model = GPT2LMHeadModel(config)
    # Learned like all else, but begun as sinusoids, in which "one back" is a plain rotation.
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(config.initializer_range * sinusoids(config.n_embd))
    return model


def sinusoids(width: int) -> Tensor:
    """Positions as sines and cosines of many wavelengths, of about unit variance."""
    frequencies = N_CTX ** -torch.linspace(0, 1, width // 2)
    angles = torch.arange(N_CTX)[:, None] * frequencies
    return 2**0.5 * torch.cat([angles.sin(), angles.cos()], dim=1)


def next_token_loss(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Mean cross-entropy, in nats a token."""
    logits = model(tokens).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


class Trainer:
    """A model in training: its folder has all that is needed to go on.

    Args:
        folder: Where the model is, or is to be.
        shape: "gpt2" or "pythia"; a folder that exists keeps its own.
        prose: Whether English prose is in the training texts, beside Python.
        seed: Decides the first weights and the batches.
    """

    def __init__(self, folder: Path, shape: str, prose: bool, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        train, held_out = split_texts(prose)
        resumed = (folder / TRAINING).is_file()
        if resumed:
            self.tokenizer = AutoTokenizer.from_pretrained(folder)
            self.model = AutoModelForCausalLM.from_pretrained(folder)
        else:
            self.tokenizer = train_tokenizer(train)
            self.model = new_model(shape, seed)
        self.step = read_json(folder / TRAINING)["step"] if resumed else 0
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05
        )
        if resumed:
            self._load_optimizer()
        self.train_tokens = encode(self.tokenizer, train)
        self.held_out_tokens = encode(self.tokenizer, held_out)

    def run(self, seconds: float) -> None:
        """Train for so long, wherever it stood, and save."""
        started = saved = time.monotonic()
        self.model.train()
        while (elapsed := time.monotonic() - started) < seconds:
            loss = self._train_step(remaining=1 - elapsed / seconds)
            if time.monotonic() - saved > SAVE_EVERY:
                self.save()
                saved = time.monotonic()
                print(f"  step {self.step}, {elapsed / 60:.1f} min, loss {loss:.3f}", flush=True)
        self.save()

    def _train_step(self, remaining: float) -> float:
        self.step += 1
        warmup, decay = self.step / WARMUP_STEPS, remaining / DECAY_SHARE
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, warmup, decay)
        tokens = self._windows(self.train_tokens, BATCH, seed=(self.seed << 32) + self.step)
        loss = next_token_loss(self.model, tokens)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()

    @staticmethod
    def _windows(tokens: Tensor, count: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(len(tokens) - N_CTX, (count, 1), generator=generator)
        return tokens[starts + torch.arange(N_CTX)]

    @torch.no_grad()
    def held_out_loss(self, count: int = 64) -> float:
        """Mean cross-entropy in nats a token on files never trained on."""
        self.model.eval()
        windows = self._windows(self.held_out_tokens, count, seed=0).split(BATCH)
        return sum(next_token_loss(self.model, batch).item() for batch in windows) / len(windows)

    def save(self) -> None:
        """Write every file whole before any takes the place of the one before it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder.parent) as temporary:
            self.model.save_pretrained(temporary)
            self.tokenizer.save_pretrained(temporary)
            save_file(self._optimizer_state(), Path(temporary) / OPTIMIZER)
            write_json(Path(temporary) / TRAINING, {"step": self.step})
            for file in Path(temporary).iterdir():
                file.replace(self.folder / file.name)

    def _optimizer_state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value
            for name, parameter in self.model.named_parameters()
            for key, value in self.optimizer.state[parameter].items()
        }

    def _load_optimizer(self) -> None:
        saved = load_file(self.folder / OPTIMIZER)
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                key: saved[f"{name}.{key}"] for key in ("step", "exp_avg", "exp_avg_sq")
            }


def print_heads(folder: Path, tokens: Tensor) -> None:
    """The three heads that look most like each kind, on half a window of text said twice."""
    model = aplens.load_model(folder, device="cpu")
    prompt = tokens[: N_CTX // 2].repeat(2)
    patterns = aplens.collect_patterns(model, prompt[None])
    scores = template_scores(patterns.values[0], prompt)[:, : len(DETECTED)]
    for kind, column in zip(DETECTED, scores.T, strict=True):
        best = column.topk(3).indices.tolist()
        named = ", ".join(f"{patterns.heads[head]} {column[head]:.2f}" for head in best)
        print(f"  {kind:15} {named}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--shape", choices=("gpt2", "pythia"), default="gpt2")
    parser.add_argument("--prose", action="store_true", help="train on English prose as well")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    disable_progress_bar()
    trainer = Trainer(options.folder, options.shape, options.prose, options.seed)
    before = trainer.step
    print(f"{len(trainer.train_tokens):,} tokens, at step {before}", flush=True)
    started = time.monotonic()
    trainer.run(60 * options.minutes)
    rate = (trainer.step - before) * BATCH * N_CTX / (time.monotonic() - started)
    print(f"step {trainer.step}, {rate:,.0f} tokens/s")
    print(f"held-out loss {trainer.held_out_loss():.3f} (uniform {math.log(VOCABULARY):.3f})")
    print_heads(options.folder, trainer.held_out_tokens)


if __name__ == "__main__":
    main()
