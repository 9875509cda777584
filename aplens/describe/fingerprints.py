"""The heads of one model, each by the mean of its fingerprints over prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from aplens.describe.scores import TemplateCounts
from aplens.heads import Head, ModelShape
from aplens.mae.habit import require_visible
from aplens.models import describe_model
from aplens.patterns import AttentionPatterns, collect_patterns, read_layers
from aplens.patterns.templates import MIXED, TEMPLATES
from aplens.prompts import Prompts

if TYPE_CHECKING:
    from aplens.mae import APMAE

#: Side of a typical pattern's picture, in pixels.
SIDE = 24

#: Prompts a head that are kept, those where it departs most from its habit.
_N_DEPARTURES = 3

#: Typical patterns are looked for among so many prompts: what is kept of these is all that takes
#: memory, about 0.3 MB a prompt for 270 heads.
_N_CANDIDATES = 64

#: Prompts of repeated random tokens, and tokens of each.
_N_REPEATED, _REPEATED_LENGTH = 8, 64


#: What is kept in other numbers than float32.
_KINDS = {"pictures": torch.uint8, "departures": torch.int64}


@dataclass(frozen=True, repr=False)
class ModelHeads:
    """What a map knows of one model's heads.

    Attributes:
        name: The model's name on the map.
        model: Its own name, and its shape.
        heads: Its heads, layer by layer.
        fingerprints: `Float[Tensor, "head d"]`, the mean over prompts of each head's fingerprints,
            which are of length 1. The shorter it is, the more the head varies with the prompt.
        halves: `Float[Tensor, "2 head d"]`, the same over either half of the prompts, drawn at
            random; None for a single prompt.
        template_scores: `Float[Tensor, "head template"]`, which share of a head's attention each of
            `aplens.patterns.TEMPLATES` holds on repeated random tokens.
        templates: The template that each head follows there, or "mixed".
        template_shares: `Float[Tensor, "head"]`, on which share of these prompts it does.
        pictures: `UInt8[Tensor, "head 24 24"]`, each head's typical pattern, that on the prompt
            whose fingerprint is nearest to the head's mean: the square root of attention, 255 for
            attention 1.
        departures: `Int[Tensor, "head k"]`, the prompts on which each head departs most from its
            habit, the most first; by their places in `texts`.
        surprises: `Float[Tensor, "head k"]`, how far: the share of attention, from 0 to 1, that
            goes beyond what AP-MAE expects, over the queries of the pattern's last row of patches.
        texts: The prompts as this model read them.

    Raises:
        ValueError: When shapes do not fit each other, an array is of another type than float32
            (`pictures` uint8, `departures` int64), a number is not finite, or a place is none.
    """

    name: str
    model: ModelShape
    heads: tuple[Head, ...]
    fingerprints: Float[Tensor, "head d"]
    halves: Float[Tensor, "2 head d"] | None
    template_scores: Float[Tensor, "head template"]
    templates: tuple[str, ...]
    template_shares: Float[Tensor, " head"]
    pictures: UInt8[Tensor, "head side side"]
    departures: Int[Tensor, "head k"]
    surprises: Float[Tensor, "head k"]
    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        n, k = len(self.heads), min(_N_DEPARTURES, len(self.texts))
        d = self.fingerprints.shape[-1]
        shapes: dict[str, tuple[int, ...]] = {
            "fingerprints": (n, d),
            "halves": (2, n, d),
            "template_scores": (n, len(TEMPLATES)),
            "template_shares": (n,),
            "pictures": (n, SIDE, SIDE),
            "departures": (n, k),
            "surprises": (n, k),
        }
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values is None and name == "halves":
                continue
            kind = _KINDS.get(name, torch.float32)
            if tuple(values.shape) != shape or 0 in shape or values.dtype != kind:
                raise ValueError(
                    f"expected {name} of shape {shape}, none of it 0, and {kind}, got "
                    f"{tuple(values.shape)} and {values.dtype}"
                )
            if values.is_floating_point() and not values.isfinite().all():
                raise ValueError(f"{name} must be finite numbers")
        unknown = set(self.templates) - {*TEMPLATES, MIXED}
        if len(self.templates) != n or unknown:
            raise ValueError(
                f"expected {n} templates of {[*TEMPLATES, MIXED]}, got {len(self.templates)}, "
                f"unknown {sorted(unknown)}"
            )
        if not 0 <= int(self.departures.min()) <= int(self.departures.max()) < len(self.texts):
            raise ValueError(f"departures must be places of {len(self.texts)} prompts")

    def __repr__(self) -> str:
        prompts = f"{len(self.texts)} prompts"
        return f"ModelHeads({len(self.heads)} heads of {self.name}, {prompts})"

    @property
    def spread(self) -> Float[Tensor, " head"]:
        """How much each head varies with the prompt: 0, always the same fingerprint, to 1.

        The mean cosine distance of a head's fingerprints to their mean direction.
        """
        return (1 - self.fingerprints.norm(dim=-1)).clamp(min=0)


@torch.no_grad()
def measure_heads(
    model: Any,
    prompts: Prompts,
    *,
    name: str,
    texts: tuple[str, ...],
    mae: APMAE,
    batch_size: int = 8,
    precision: torch.dtype | None = None,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> ModelHeads:
    """Run each prompt once through a model, and sum up what all of its heads do.

    Prompts, which read `texts`, are on the model's device, longer than one patch of the AP-MAE and
    within its context. `seed` is that of the halves of the prompts and of the repeated tokens;
    `progress` is called with the prompts done.
    """
    require_visible(mae, int(prompts.lengths.min()))
    info = describe_model(model)
    templates = _score_repeated(model, prompts, mae.config.n_ctx, seed)
    sums = _Sums(len(prompts), len(info.heads), seed)
    for batch in prompts.split(batch_size):
        layers, _ = read_layers(model, batch, lambda patterns: _look(mae, patterns, precision))
        sums.add(_Seen(*(torch.cat(parts, dim=1) for parts in zip(*layers, strict=True))))
        if progress is not None:
            progress(sums.n_done)
    named = templates.columns()
    return ModelHeads(
        name=name,
        model=info.shape,
        heads=info.heads,
        fingerprints=sums.mean().float(),
        halves=sums.halves(),
        template_scores=torch.stack([torch.as_tensor(named[t]).float() for t in TEMPLATES], dim=-1),
        templates=tuple(map(str, named["template"])),
        template_shares=torch.as_tensor(named["template_share"]).float(),
        pictures=sums.typical(),
        departures=sums.departures,
        surprises=sums.surprises,
        texts=texts,
    )


class _Seen(NamedTuple):
    """Of some prompts and heads."""

    fingerprints: Float[Tensor, "prompt head d"]
    surprises: Float[Tensor, "prompt head"]
    pictures: UInt8[Tensor, "prompt head side side"]


def _look(mae: APMAE, patterns: AttentionPatterns, precision: torch.dtype | None) -> _Seen:
    """What is kept of the patterns of one layer."""
    order: list[int] = []
    seen: list[_Seen] = []
    for rows, alike in patterns.by_length():
        n_tokens = alike.n_tokens
        # The queries of the last row of patches, all of which one filling-in tells.
        n_queries = (n_tokens - 1) % mae.grid.patch_size + 1
        attention = alike.values[..., -n_queries:, :].to(mae.device).float()
        habit = mae.expect(alike, n_queries, precision=precision)
        surprise = (attention - habit).clamp(min=0).sum(-1).mean(-1)
        found = _Seen(
            mae.fingerprint(alike, precision=precision).cpu(), surprise.cpu(), _draw(alike.values)
        )
        order.extend(rows.tolist())
        seen.append(found)
    back = torch.tensor(order).argsort()
    return _Seen(*(torch.cat(parts)[back] for parts in zip(*seen, strict=True)))


def _draw(attention: Float[Tensor, "prompt head query key"]) -> UInt8[Tensor, "prompt head 24 24"]:
    """Small pictures; a pixel shows the largest of its cells, so that thin lines stay.

    Log-normalized, as everywhere else, nearly every cell's largest would be bright.
    """
    values = attention.float().sqrt()
    small = (
        F.adaptive_max_pool2d(values, SIDE)
        if values.shape[-1] >= SIDE
        else F.interpolate(values, (SIDE, SIDE), mode="nearest")
    )
    return (small.clamp(0, 1) * 255).round().to(torch.uint8).cpu()


class _Sums:
    """What all prompts so far add up to."""

    def __init__(self, n_prompts: int, n_heads: int, seed: int) -> None:
        order = torch.randperm(n_prompts, generator=torch.Generator().manual_seed(seed))
        self._second: Bool[Tensor, " prompt"] = order >= (n_prompts + 1) // 2
        self._by_half: Tensor | float = 0.0
        self._candidates: list[_Seen] = []
        self.n_done = 0
        self.departures: Int[Tensor, "head k"] = torch.empty(n_heads, 0, dtype=torch.long)
        self.surprises: Float[Tensor, "head k"] = torch.empty(n_heads, 0)

    def add(self, seen: _Seen) -> None:
        """The next prompts."""
        rows = torch.arange(self.n_done, self.n_done + len(seen.surprises))
        second = self._second[rows].double()
        weights = torch.stack([1 - second, second])
        sums = torch.einsum("sp,phd->shd", weights, seen.fingerprints.double())
        self._by_half = self._by_half + sums
        if self.n_done < _N_CANDIDATES:
            self._candidates.append(seen)
        self._rank(rows, seen.surprises)
        self.n_done += len(rows)

    def _rank(self, rows: Int[Tensor, " prompt"], surprises: Float[Tensor, "prompt head"]) -> None:
        """Keep the prompts with the largest surprises."""
        values = torch.cat([self.surprises, surprises.T], dim=1)
        places = torch.cat([self.departures, rows.expand(len(values), -1)], dim=1)
        self.surprises, best = values.topk(min(_N_DEPARTURES, values.shape[1]), dim=1)
        self.departures = places.gather(1, best)

    def mean(self) -> Float[Tensor, "head d"]:
        return torch.as_tensor(self._by_half).sum(0) / self.n_done

    def halves(self) -> Float[Tensor, "2 head d"] | None:
        n_second = int(self._second.sum())
        if not n_second:
            return None
        counts = torch.tensor([self.n_done - n_second, n_second])
        return (torch.as_tensor(self._by_half) / counts[:, None, None]).float()

    def typical(self) -> UInt8[Tensor, "head 24 24"]:
        """Of each head the picture whose fingerprint is nearest to the mean."""
        fingerprints = torch.cat([seen.fingerprints for seen in self._candidates])
        pictures = torch.cat([seen.pictures for seen in self._candidates])
        nearest = (fingerprints.double() * self.mean()).sum(-1).argmax(0)
        return pictures[nearest, torch.arange(len(nearest))]


def _score_repeated(model: Any, prompts: Prompts, n_ctx: int, seed: int) -> TemplateCounts:
    """Template scores on random tokens whose second half repeats the first.

    Only there do induction and duplicate tokens have something to show on every prompt. Tokens are
    drawn from those that occur in the prompts, and each begins as one of these does, with BOS where
    they have it.
    """
    info = describe_model(model)
    half = (min(n_ctx, info.n_ctx, _REPEATED_LENGTH) - 1) // 2
    vocabulary = prompts.tokens[prompts.mask].unique().cpu()
    generator = torch.Generator().manual_seed(seed)
    counts = TemplateCounts(len(info.heads))
    for number in range(_N_REPEATED):
        drawn = vocabulary[torch.randint(len(vocabulary), (half,), generator=generator)]
        first = prompts.tokens[number % len(prompts), :1].cpu()
        tokens = torch.cat([first, drawn, drawn])
        counts.see(collect_patterns(model, tokens[None].to(info.device)).prompt(0), tokens)
    return counts
