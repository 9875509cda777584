"""Training an AP-MAE on the patterns of a live model (docs/method.md, step 6)."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn, optim
from torch.nn import functional as F

from aplens._io import hash_tensors, hash_tokens, write_json
from aplens._parts import in_parts
from aplens._processes import Processes, join_processes
from aplens._progress import Progress, show_progress
from aplens.mae.additive import additive_fit
from aplens.mae.checkpoints import HistoryEntry, TrainingState, load_checkpoint, save_checkpoint
from aplens.mae.config import APMAEConfig
from aplens.mae.fingerprint import fit_fingerprint
from aplens.mae.identity import fingerprint_heads, identity_loss
from aplens.mae.masking import random_masks
from aplens.mae.model import APMAE, FINGERPRINT_POOL, APMAEOutput
from aplens.mae.pretrained import load_weights
from aplens.mae.rounds import PatternRounds, seeded
from aplens.mae.settings import TrainingSettings
from aplens.mae.validation import Validation
from aplens.models import describe_model, sketch_weights
from aplens.patterns import crop_patches, depth_scales

if TYPE_CHECKING:
    from aplens.scenarios import Scenarios

TrainingPrompts: TypeAlias = "Int[Tensor, 'prompt pos'] | Scenarios"

HISTORY_FILE = "history.json"
_FINGERPRINT_PROMPTS = 24

# AdamW's, as in the paper; and what gradients are clipped to, of the loss in units of the patterns'
# variance.
_BETAS, _MAX_GRADIENT_NORM = (0.9, 0.95), 1.0

# What a seed is used for, so that no two uses share random numbers; `PatternRounds` has 0, 1 and 7,
# `Validation` 4.
_SHUFFLE, _MASKS, _CROP, _FINGERPRINT, _MIXED = 2, 3, 5, 6, 8


class TrainingError(RuntimeError):
    """Training cannot go on; the last checkpoint is kept."""


@dataclass(frozen=True, repr=False)
class TrainingResult:
    """A trained AP-MAE, and what it reaches on held-out patterns.

    Errors are mean squared errors over masked patches, in log-normalized units.

    Attributes:
        mae: The AP-MAE, in evaluation mode.
        folder: Where it was saved; `APMAE.from_pretrained` loads it.
        validation_mse: Its error.
        mean_patch_mse: Error of predicting the mean patch of each position.
        additive_mse: Error of the additive fit.
        patterns: Patterns trained on.
        seconds: Time it took, all runs together.
        history: One entry a validation; with `identity_weight`, also how often a held-out head is
            found by its fingerprint on another prompt.
    """

    mae: APMAE
    folder: Path
    validation_mse: float
    mean_patch_mse: float
    additive_mse: float
    patterns: int
    seconds: float
    history: list[HistoryEntry]

    def __repr__(self) -> str:
        return (
            f"TrainingResult({self.folder}: {self.patterns:,} patterns in {self.seconds:.0f} s, "
            f"error {self.validation_ratio:.2f} of the mean patch's, additive fit "
            f"{self.additive_ratio:.2f})"
        )

    @property
    def validation_ratio(self) -> float:
        """Its error as a ratio to the mean patch's: below `additive_ratio` it learned something."""
        return self.validation_mse / self.mean_patch_mse

    @property
    def additive_ratio(self) -> float:
        """The additive fit's error as a ratio to the mean patch's."""
        return self.additive_mse / self.mean_patch_mse


def train_apmae(
    model: Any,
    prompts: TrainingPrompts | Sequence[TrainingPrompts],
    config: APMAEConfig,
    folder: str | os.PathLike[str],
    *,
    validation: TrainingPrompts,
    start: str | os.PathLike[str] | None = None,
    settings: TrainingSettings | None = None,
    progress: bool | Progress = True,
) -> TrainingResult:
    """Train an AP-MAE on a model's attention patterns, without storing any.

    Where the configuration has a fingerprint (`fingerprint_dim`), it is fitted at the end, on a few
    of the prompts (`fit_fingerprint`); an unfinished run has none. With `identity_weight` the
    fingerprint of `start` is trained on instead (`aplens.mae.identity`).

    Where `folder` holds an unfinished run of the same configuration, settings and data, it goes on;
    on a CPU it then ends with the same weights, bit for bit, as a run that was never interrupted
    (but for `max_seconds`). A finished run is loaded.

    Started by `accelerate launch`, each process runs its own prompts and learns from their
    patterns; gradients are added up, so that the result is that of one process but for rounding.
    The first process writes. Another number of processes may go on from its checkpoint.

    Args:
        model: A HookedTransformer or TransformerBridge, or a list of several, whose batches are
            mixed; the AP-MAE trains on the first one's device.
        prompts: Token ids, or scenarios, of one length up to `config.n_ctx`; of several models, a
            list with those of each. Of longer prompts than these the AP-MAE learns nothing; where
            no `start` did, a warning says so.
        config: The AP-MAE to train.
        folder: For checkpoints, `history.json` and, as `save_pretrained` writes them, the weights.
        validation: Held-out prompts of the same length for the first model: of scenarios, from
            other files.
        start: Name or folder of an AP-MAE of the same sizes to go on from (default: random
            weights). The mean patch is measured anew, as far as the prompts reach. Its fingerprint
            is kept where `identity_weight` trains it on.
        settings: Recipe and budget (default: `TrainingSettings()`).
        progress: A bar (the default), nothing (False), or a function called with patterns done and
            patterns in all, once before the first step and after every step. With `max_seconds` the
            second number is an estimate until the end.

    Raises:
        ValueError: When prompts are empty, too long or of several lengths, appear in training and
            validation, or are not as many lists as models; or when `identity_weight` has no
            fingerprint to start from, or a single validation prompt.
        CheckpointError: When `folder` holds another run, or a damaged checkpoint, or `start` is no
            AP-MAE of these sizes.
        FolderInUseError: When another run is writing into the folder.
        TrainingError: When the loss or a gradient is not finite; the last checkpoint is kept.
    """
    settings = settings or TrainingSettings()
    models, lists = [model], [cast(TrainingPrompts, prompts)]
    if isinstance(model, (list, tuple)):
        models, lists = list(model), list(cast(Sequence[TrainingPrompts], prompts))
    if len(models) != len(lists) or not models:
        raise ValueError(
            f"expected prompts for each of {len(models)} models, got {len(lists)} lists"
        )
    tokens = [_read_prompts(one, "prompts", config) for one in lists]
    held_out = _read_prompts(validation, "validation", config)
    lengths = sorted({one.shape[1] for one in [*tokens, held_out]})
    if len(lengths) > 1:
        raise ValueError(f"prompts and validation must have one length, got {lengths} tokens")
    for one, read in zip(lists, tokens, strict=True):
        _refuse_overlap(one, read, validation, held_out)
    if config.identity_weight and len(held_out) < 2:
        raise ValueError(
            "identity_weight is validated by finding the heads of one prompt on another: expected "
            "2 validation prompts or more, got 1"
        )
    if start is None and lengths[0] <= config.n_ctx - config.patch_size:
        warnings.warn(
            f"prompts have {lengths[0]} tokens, n_ctx is {config.n_ctx}: the AP-MAE will know "
            "nothing of longer ones, not even their mean patches; train on longer prompts, or "
            "choose a smaller n_ctx",
            stacklevel=2,
        )
    processes = join_processes()
    with processes.own(folder) as path:
        run = _Run(
            list(zip(models, tokens, strict=True)),
            held_out,
            config,
            path,
            start,
            settings,
            processes,
        )
        return run.train(show_progress(progress, "Training"))


class _Run:
    """One training run: everything that stays the same, and the state that moves."""

    def __init__(
        self,
        sources: list[tuple[Any, Int[Tensor, "prompt pos"]]],
        held_out: Int[Tensor, "prompt pos"],
        config: APMAEConfig,
        folder: Path,
        start: str | os.PathLike[str] | None,
        settings: TrainingSettings,
        processes: Processes,
    ) -> None:
        model, tokens = sources[0]
        self.processes = processes
        self.folder = folder
        self.settings = settings
        self.n_tokens = tokens.shape[1]
        self.mae = APMAE(config, settings.seed).to(describe_model(model).device)
        self.start = None if start is None else APMAE.from_pretrained(start).to(self.mae.device)
        if self.start is not None:
            _copy_weights(self.start, self.mae, start)
        if config.identity_weight and not (self.start and self.start.has_fingerprint):
            raise ValueError(
                "identity_weight trains a fingerprint on: give a start that has one "
                f"(aplens.mae.fit_fingerprint), got {start!r}"
            )
        self.identity = _identify(sources, held_out, self.start, config, settings)
        self.optimizer = _make_optimizer(self.mae, settings)
        self.rounds = PatternRounds(sources, self.mae.grid, settings, processes)
        self.validation = Validation(
            model, held_out, self.mae.grid, config.mask_ratio, settings, processes
        )
        loaded = load_checkpoint(folder, self.mae, self.optimizer, self.identity)
        self._told: dict[int, Float[Tensor, "head d"]] = {}
        self.state = loaded or self._begin()
        self._saved = time.monotonic()
        self._started = self._saved - self.state.seconds  # as if all runs had been one

    def _begin(self) -> TrainingState:
        """Measure what does not change: the mean patch of every position, and the baselines."""
        patches, total = self.rounds.patches(0), self.processes.sum
        k, n = patches.shape[1], math.prod(self.rounds.shape(0))
        mean = torch.zeros(self.mae.grid.n_patches, self.mae.grid.n_pixels, device=patches.device)
        mean[:k] = total(patches.sum(dim=0, dtype=torch.float64)) / n
        if self.mae.mean_patches is not None:
            scales = torch.zeros(self.mae.config.n_ctx, dtype=torch.float64, device=patches.device)
            for (part,) in in_parts(patches) if len(patches) else ():
                of_part = depth_scales(part, self.mae.grid)
                scales[: len(of_part)] += of_part.double() * len(part)
            self._set_mean(mean, total(scales)[: self.n_tokens] / n)
        squared = torch.zeros((), dtype=torch.float64, device=patches.device)
        for (part,) in in_parts(patches):
            squared += (part - mean[:k]).square().sum(dtype=torch.float64)
        variance = float(total(squared)) / (n * k * self.mae.grid.n_pixels)
        return TrainingState(
            # No patterns vary so little that dividing by this could overflow.
            variance=max(variance, 1e-9),
            mean_patch_mse=self.validation.error_of(lambda part, mask: mean[:k].expand_as(part)),
            additive_mse=self.validation.error_of(
                lambda part, mask: additive_fit(part, mask, mean, self.mae.grid)
            ),
        )

    def _set_mean(
        self, mean: Float[Tensor, "patch pixel"], scales: Float[Tensor, " length"]
    ) -> None:
        """Set the mean patches to those of these prompts; beyond them a start's stay."""
        mae, n_tokens = self.mae, self.n_tokens
        assert mae.mean_patches is not None
        assert mae.depth_scales is not None
        if self.start is not None and n_tokens < mae.config.n_ctx:
            # The start's mean is that of its longest prompts, on whose scale attention lies less
            # deep: what was measured is brought to it, and the factors bring it back.
            factor = mae.depth_scales[n_tokens - 1].clone()
            seen = torch.zeros_like(mean)
            inside = mae.grid.causal(n_tokens, mean.device)
            seen[: len(inside)] = inside
            mean = torch.where(seen.bool(), 1 - (1 - mean) / factor, mae.mean_patches)
            scales = scales * factor
        mae.mean_patches.copy_(mean)
        mae.depth_scales[:n_tokens] = scales

    def train(self, progress: Progress) -> TrainingResult:
        """Train to the end of the budget."""
        state = self.state
        if not state.history:
            self._validate()
            self._save()
        progress(state.patterns, self._total)
        if self.fraction < 1 or self._lacks_fingerprint:  # else it was finished before
            self._learn(progress)
            if self._lacks_fingerprint:
                self._fit_fingerprint()
            self._save()
        return self._result()

    @property
    def _lacks_fingerprint(self) -> bool:
        return self.mae.config.fingerprint_dim > 0 and not self.mae.has_fingerprint

    def _learn(self, progress: Progress) -> None:
        """Step by step, round by round."""
        state, settings = self.state, self.settings
        while self.fraction < 1:
            batches = self._batches()
            while state.batch < len(batches) and self.fraction < 1:
                self._step(*batches[state.batch])
                state.batch += 1
                state.seconds = self.processes.from_main(time.monotonic() - self._started)
                if self.fraction * settings.validations >= len(state.history):
                    self._validate()
                if time.monotonic() - self._saved >= settings.checkpoint_seconds:
                    self._save()
                progress(state.patterns, self._total)
            if state.batch >= len(batches):
                state.round, state.batch = state.round + 1, 0
                self._told.clear()  # the prototypes of the round that ended

    def _fit_fingerprint(self) -> None:
        """By every process on the same prompts: a few seconds, and all end with one AP-MAE."""
        generator = seeded(self.settings.seed, _FINGERPRINT)
        model, tokens = self.rounds.sources[0]
        chosen = torch.randperm(len(tokens), generator=generator)
        prompts = tokens[chosen[:_FINGERPRINT_PROMPTS]]
        fit_fingerprint(self.mae, model, prompts, batch_size=self.settings.model_batch_size)

    @property
    def fraction(self) -> float:
        """Share of the budget that is used."""
        used = self.state.patterns / self.settings.patterns
        if self.settings.max_seconds is not None:
            used = max(used, self.state.seconds / self.settings.max_seconds)
        return min(used, 1.0)

    def _batches(self) -> list[tuple[int, Int[Tensor, " pattern"]]]:
        """The round's batches, each with the number of its part, which is of one model.

        Those of several models are mixed: a stretch on one undoes what was learned of another.
        """
        parts, seed = self.rounds.parts(self.state.round), self.settings.seed
        batches = [(part, batch) for part in parts for batch in self._batches_of(part)]
        if len(parts) == 1:
            return batches
        order = torch.randperm(len(batches), generator=seeded(seed, _MIXED, self.state.round))
        return [batches[place] for place in order]

    def _batches_of(self, part: int) -> Iterator[Int[Tensor, " pattern"]]:
        """Every pattern of a part once a pass, in batches of about equal size."""
        n_patterns = math.prod(self.rounds.shape(part))
        generator = seeded(self.settings.seed, _SHUFFLE, part)
        n_batches = max(1, round(n_patterns / self.settings.batch_size))
        for _ in range(self.settings.passes):
            yield from torch.randperm(n_patterns, generator=generator).tensor_split(n_batches)

    def _crop(
        self, patches: Float[Tensor, "pattern patch pixel"]
    ) -> tuple[Float[Tensor, "pattern some pixel"], int]:
        """Now and then, the patterns of a shorter prompt; and how many tokens it has."""
        generator = seeded(self.settings.seed, _CROP, self.state.step)
        if torch.rand((), generator=generator) >= self.settings.crop_share:
            return patches, self.n_tokens
        shortest = self.mae.config.patch_size + 1
        n_tokens = int(torch.randint(shortest, self.n_tokens + 1, (), generator=generator))
        return crop_patches(patches, self.mae.grid, n_tokens), n_tokens

    def _step(self, part: int, batch: Int[Tensor, " pattern"]) -> None:
        """Learn from one batch, of which every process has its share."""
        state, settings = self.state, self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate_at(self.fraction)
        self.optimizer.zero_grad()
        loss = self._add_up(self._backward(part, batch))
        norm = nn.utils.clip_grad_norm_(self.mae.parameters(), _MAX_GRADIENT_NORM)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise TrainingError(
                f"loss {loss.item()}, gradient norm {norm.item()} at step {state.step}: a smaller "
                f"learning rate may help (it was {settings.learning_rate_at(self.fraction):.2e}); "
                f"the last checkpoint in {self.folder} is kept"
            )
        self.optimizer.step()
        state.step += 1
        state.patterns += len(batch)
        state.loss_sum += loss.item()
        state.loss_count += 1

    def _backward(self, part: int, batch: Int[Tensor, " pattern"]) -> Float[Tensor, ""]:
        """This process's share of the batch's loss, its gradients left in the parameters."""
        state, settings = self.state, self.settings
        mine, places = self.rounds.places(part, batch)
        held = self.rounds.patches(part)
        patches, n_tokens = self._crop(held[places.to(held.device)].to(self.mae.device).float())
        masks = random_masks(
            len(batch),
            patches.shape[1],
            self.mae.config.mask_ratio,
            seeded(settings.seed, _MASKS, state.step),
        )
        own = mine.clone()
        if not mine.any():  # nothing to learn here, but the parameters' gradients have to exist
            patches, own[0] = patches.new_zeros(1, *patches.shape[1:]), True
        output = self.mae(patches, masks[own], n_tokens=n_tokens, precision=settings.dtype)
        # Errors are means over hidden pixels and over patterns: weighted so, parts add up to them.
        pixels = self.mae.grid.inside(n_tokens).sum(-1)
        hidden = (masks * pixels).sum(1)
        loss = output.loss * float(hidden[mine].sum() / hidden.sum())
        share = float(mine.sum() / len(batch))
        summary = output.summary_loss * share
        total = (loss + self.mae.config.summary_weight * summary) / state.variance
        if self.mae.config.identity_weight:
            share = self.mae.config.identity_weight * share
            total = total + share * self._identity_loss(part, batch[own], patches, n_tokens, output)
        total.backward()
        return loss.detach()

    def _identity_loss(
        self,
        part: int,
        batch: Int[Tensor, " pattern"],
        patches: Float[Tensor, "pattern patch pixel"],
        n_tokens: int,
        output: APMAEOutput,
    ) -> Float[Tensor, ""]:
        """How badly heads are told by what was visible of their patterns, and by whole ones."""
        prototypes = self._prototypes(part)
        heads = batch.to(prototypes.device) % len(prototypes)
        embeddings = self.mae.encode_patches(  # of half of them: that is enough, and less work
            patches[::2],
            pool=FINGERPRINT_POOL,
            n_tokens=n_tokens,
            precision=self.settings.dtype,
        )
        whole = self.mae.read_fingerprint(embeddings)
        assert output.fingerprint is not None  # the configuration has one
        return (
            identity_loss(output.fingerprint, prototypes, heads)
            + identity_loss(whole, prototypes, heads[::2])
        ) / 2

    @torch.no_grad()
    def _prototypes(self, part: int) -> Float[Tensor, "head d"]:
        """Each head's mean fingerprint in a part of the round, by the AP-MAE of the start."""
        if part not in self._told:
            assert self.start is not None  # checked when the run was made
            n_heads, d = self.rounds.shape(part)[1], self.mae.config.fingerprint_dim
            added = torch.zeros(n_heads, d, dtype=torch.float64, device=self.mae.device)
            patches = self.rounds.patches(part)
            for prompt in patches.split(n_heads) if len(patches) else ():
                added += fingerprint_heads(
                    self.start, prompt, self.n_tokens, self.settings.dtype
                ).double()
            self._told[part] = F.normalize(self.processes.sum(added).float(), dim=-1)
        return self._told[part]

    def _add_up(self, loss: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Add up gradients over the processes, and the loss."""
        if self.processes.count == 1:
            return loss
        gradients = [p.grad for p in self.mae.parameters() if p.grad is not None]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss[None]])
        *added, total = self.processes.sum(flat).split([*(g.numel() for g in gradients), 1])
        for gradient, values in zip(gradients, added, strict=True):
            gradient.copy_(values.view_as(gradient))
        return total[0]

    def _validate(self) -> None:
        state, settings = self.state, self.settings
        mse = self.validation.error_of(
            lambda part, mask: self.mae.fill_in(
                part, mask, n_tokens=self.n_tokens, precision=settings.dtype
            )
        )
        found = self.validation.retrieval(self.mae) if self.mae.config.identity_weight else None
        state.history.append(
            {
                "patterns": state.patterns,
                "seconds": round(state.seconds, 3),
                "learning_rate": settings.learning_rate_at(self.fraction),
                "loss": _mean_loss(state),
                "validation_mse": mse,
                "validation_ratio": mse / state.mean_patch_mse,
                "retrieval": found,
            }
        )
        state.loss_sum, state.loss_count = 0.0, 0

    def _save(self) -> None:
        if not self.processes.is_main:
            return
        self._saved = time.monotonic()
        self.mae.save_pretrained(self.folder)
        write_json(
            self.folder / HISTORY_FILE,
            {
                "mean_patch_mse": self.state.mean_patch_mse,
                "additive_mse": self.state.additive_mse,
                "history": self.state.history,
            },
        )
        # Last: where it says that training is finished, the other files are, too.
        save_checkpoint(self.folder, self.mae, self.optimizer, self.state, self.identity)

    @property
    def _total(self) -> int:
        """Patterns by the end of the budget; where time may run out before, at the speed so far."""
        patterns, fraction = self.state.patterns, self.fraction
        return round(patterns / fraction) if patterns else self.settings.patterns

    def _result(self) -> TrainingResult:
        state = self.state
        return TrainingResult(
            mae=self.mae.eval(),
            folder=self.folder,
            validation_mse=state.history[-1]["validation_mse"],
            mean_patch_mse=state.mean_patch_mse,
            additive_mse=state.additive_mse,
            patterns=state.patterns,
            seconds=state.seconds,
            history=state.history,
        )


def _make_optimizer(mae: APMAE, settings: TrainingSettings) -> optim.Optimizer:
    matrices = [parameter for parameter in mae.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in mae.parameters() if parameter.ndim != 2]
    return optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        betas=_BETAS,
    )


def _copy_weights(start: APMAE, mae: APMAE, name: object) -> None:
    """Begin from another AP-MAE; what it lacks of a summary or fingerprint stays as it is."""
    kept = start.state_dict()
    if not mae.config.identity_weight:  # to be fitted to the new encoder
        kept = {n: w for n, w in kept.items() if not n.startswith("to_fingerprint.")}
    own = mae.state_dict().items()
    optional = {n: w for n, w in own if n.startswith(("summary.", "to_fingerprint."))}
    load_weights(mae, optional | kept, f"start {name}", "the configuration to be trained")


def _mean_loss(state: TrainingState) -> float | None:
    return state.loss_sum / state.loss_count if state.loss_count else None


def _read_prompts(
    prompts: TrainingPrompts, name: str, config: APMAEConfig
) -> Int[Tensor, "prompt pos"]:
    tokens = prompts if isinstance(prompts, Tensor) else prompts.tokens()
    if tokens.ndim != 2 or not len(tokens):
        raise ValueError(
            f"{name}: expected tokens (prompt, pos), not empty, got {tuple(tokens.shape)}"
        )
    if not config.patch_size < tokens.shape[1] <= config.n_ctx:
        raise ValueError(
            f"{name}: prompts must be longer than a patch ({config.patch_size} tokens) and at most "
            f"n_ctx = {config.n_ctx}, got {tokens.shape[1]} tokens"
        )
    return tokens


def _refuse_overlap(
    prompts: TrainingPrompts, tokens: Tensor, validation: TrainingPrompts, held_out: Tensor
) -> None:
    if not isinstance(prompts, Tensor) and not isinstance(validation, Tensor):
        shared = sorted(set(prompts.files) & set(validation.files))
        if shared:
            raise ValueError(
                f"{len(shared)} source files are in prompts and in validation, such as "
                f"{shared[0]}: split by file (Scenarios.split)"
            )
    seen = {tuple(prompt) for prompt in tokens.tolist()}
    repeated = sum(tuple(prompt) in seen for prompt in held_out.tolist())
    if repeated:
        raise ValueError(f"{repeated} of {len(held_out)} validation prompts are training prompts")


def _identify(
    sources: list[tuple[Any, Int[Tensor, "prompt pos"]]],
    held_out: Tensor,
    start: APMAE | None,
    config: APMAEConfig,
    settings: TrainingSettings,
) -> dict[str, Any]:
    """What a run must have in common with a checkpoint that it goes on from."""
    recipe = asdict(settings)
    del recipe["checkpoint_seconds"]  # the one setting that changes nothing in the result
    models = {
        str(number): {
            "name": info.name,
            "n_layers": info.n_layers,
            "n_heads": info.n_heads,
            "d_head": info.d_head,
            "weights": sketch_weights(model),
            "prompts": hash_tokens(tokens),
        }
        for number, (info, model, tokens) in enumerate(
            (describe_model(model), model, tokens) for model, tokens in sources
        )
    }
    return {
        "config": asdict(config),
        "settings": recipe,
        "models": models,
        "validation": hash_tokens(held_out),
        "start": start and hash_tensors(start.state_dict()),
    }
