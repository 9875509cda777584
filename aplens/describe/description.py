"""What heads do, read off their patterns: template, typical pattern, surprise, heads like them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from aplens._progress import Progress, show_progress
from aplens.describe.kin import centre, find_nearest
from aplens.describe.reading import common_length
from aplens.describe.scores import TemplateCounts
from aplens.describe.surprise_keys import KEY_KINDS, Answers, SurpriseTally
from aplens.heads import Head
from aplens.mae import DEFAULT_POOL, FINGERPRINT_POOL
from aplens.mae.habit import require_visible
from aplens.models import describe_model
from aplens.patterns import AttentionPatterns, collect_patterns, read_layers
from aplens.prompts import Prompts

if TYPE_CHECKING:
    from aplens.mae import APMAE

_N_NEAREST = 3
_N_TEXTS = 5


@dataclass(frozen=True)
class TypicalPattern:
    """A head's pattern on the prompt whose embedding is nearest to the head's mean direction.

    Embeddings depend on the prompt's length, so all prompts are cut to that of the middle one.

    Attributes:
        prompt: The prompt's place among those given.
        attention: `Float[Tensor, "query key"]`, attention probabilities.
        habit: `Float[Tensor, "query key"]`, those that the AP-MAE expects.
    """

    prompt: int
    attention: Float[Tensor, "query key"]
    habit: Float[Tensor, "query key"]


@dataclass(frozen=True, repr=False)
class HeadDescription:
    """What one head does on some prompts.

    Attributes:
        head: Which head.
        template: The name that most prompts give its pattern (`aplens.patterns.templates`).
        template_share: The share of the prompts that do.
        variation: How much its pattern varies with the prompt, from 0 to 1, as `score_heads` has
            it: the mean cosine distance of its embeddings to their mean direction. NaN for a single
            prompt.
        surprise: The mean total variation distance between a query's attention and its habit, from
            0, the head follows its habit everywhere, to 1.
        surprise_by_kind: The share of its surprise (attention beyond habit) by what the key is to
            the query: "self", "duplicate_token", "induction", "previous_token", "answer" (the
            prompt's answer), "wrong_answer", "first_token", "delimiter", "other". A key counts
            once, as the first of these. NaN without surprise.
        surprise_by_text: The five token texts that get most of it, with their shares.
        nearest: The three heads of the model whose fingerprints over these prompts are most like
            its own, with the similarity, from -1 to 1, as `HeadMap.nearest` has it for these
            prompts. Where the AP-MAE has no fingerprint, mean embeddings stand for fingerprints.
        typical: Its typical pattern.
    """

    head: Head
    template: str
    template_share: float
    variation: float
    surprise: float
    surprise_by_kind: dict[str, float]
    surprise_by_text: dict[str, float]
    nearest: dict[Head, float]
    typical: TypicalPattern

    def __repr__(self) -> str:
        return (
            f"HeadDescription({self.head}: {self.template} on {self.template_share:.0%} of the "
            f"prompts, surprise {self.surprise:.0%})"
        )


@torch.no_grad()
def describe_patterns(
    model: Any,
    prompts: Prompts,
    heads: Sequence[Head],
    *,
    mae: APMAE,
    texts: Mapping[int, str],
    delimiters: Bool[Tensor, " token_id"],
    answers: Sequence[Answers],
    batch_size: int = 8,
    precision: torch.dtype | None = None,
    progress: bool | Progress = True,
) -> list[HeadDescription]:
    """Describe heads by their patterns; the prompts are run twice, and no pattern is kept.

    The first run sums up the embeddings of all heads of the model. The second looks at the chosen
    ones, and stops after the last of their layers. Prompts are on the model's device, longer than
    one patch of the AP-MAE and within its context. `texts` and `delimiters` say of token ids what
    they read and whether they are delimiters; there is one of `answers` a prompt.
    """
    require_visible(mae, int(prompts.lengths.min()))
    length = common_length(prompts.lengths)

    show = show_progress(progress, "Describing heads")

    def tell(start: int) -> Callable[[int], object]:
        return lambda done: show(start + done, 2 * len(prompts))

    means, kin = _embed_all(model, prompts, mae, length, batch_size, precision, tell(0))
    every = describe_model(model).heads
    places = [every.index(head) for head in heads]
    typical = _TypicalSearch(mae, means[places], length, precision)
    templates = TemplateCounts(len(heads))
    surprise = SurpriseTally(len(heads), delimiters)
    for start, batch, patterns in _batches(model, prompts, heads, batch_size):
        for rows, alike in patterns.by_length():
            habits = mae.expect(alike, None, precision=precision)
            for row, attention, habit in zip(rows.tolist(), alike.values, habits, strict=True):
                tokens = torch.tensor(batch.ids(row))
                templates.see(attention, tokens)
                surprise.see(attention, habit, tokens, answers[start + row])
                typical.see(start + row, attention)
        tell(len(prompts))(start + len(batch))

    names, by_kind = templates.columns(), surprise.shares_by_kind()
    several = int((prompts.lengths >= length).sum()) > 1
    variation = (1 - means.norm(dim=-1)).clamp(min=0) if several else means[:, 0] * torch.nan
    return [
        HeadDescription(
            head=head,
            template=str(names["template"][row]),
            template_share=float(names["template_share"][row]),
            variation=float(variation[place]),
            surprise=float(surprise.means()[row]),
            surprise_by_kind=dict(zip(KEY_KINDS, by_kind[row].tolist(), strict=True)),
            surprise_by_text=dict(list(by_text.items())[:_N_TEXTS]),
            nearest={every[i]: cosine for i, cosine in find_nearest(kin, place, _N_NEAREST)},
            typical=found,
        )
        for row, (head, place, by_text, found) in enumerate(
            zip(heads, places, surprise.shares_by_text(texts), typical.found(), strict=True)
        )
    ]


def _embed_all(
    model: Any,
    prompts: Prompts,
    mae: APMAE,
    length: int,
    batch_size: int,
    precision: torch.dtype | None,
    tell: Callable[[int], object],
) -> tuple[Float[Tensor, "head d_embed"], Float[Tensor, "head d"]]:
    """Of all heads: the mean of their embeddings as unit vectors, and what they are compared by.

    The mean is of prompts of at least `length` tokens, of the first so many, whose patterns no
    later token changes; heads are compared by the fingerprints of whole prompts.
    """
    means: Tensor | float = 0.0
    kin: Tensor | float = 0.0
    n_done = 0
    for batch in prompts.split(batch_size):
        layers, _ = read_layers(
            model, batch, lambda patterns: _sum_embeddings(mae, patterns, length, precision)
        )
        means = means + torch.cat([embeddings for embeddings, _ in layers])
        kin = kin + torch.cat([fingerprints for _, fingerprints in layers])
        n_done += len(batch)
        tell(n_done)
    fingerprints = (torch.as_tensor(kin) / n_done).float()
    n_long = int((prompts.lengths >= length).sum())
    return torch.as_tensor(means) / n_long, centre(fingerprints, fingerprints.mean(0))


def _sum_embeddings(
    mae: APMAE, patterns: AttentionPatterns, length: int, precision: torch.dtype | None
) -> tuple[Float[Tensor, "head d_embed"], Float[Tensor, "head d"]]:
    """Summed over prompts: unit embeddings of the first `length` tokens, and fingerprints."""
    size = mae.embedding_size(DEFAULT_POOL)  # the fingerprint's pools begin with these
    embeddings = torch.zeros(len(patterns.heads), size, dtype=torch.float64)
    fingerprints: Tensor | float = 0.0
    for _, alike in patterns.by_length():
        whole = mae.encode(alike, pool=FINGERPRINT_POOL, precision=precision)
        unit = F.normalize(whole[..., :size], dim=-1)
        compared = mae.read_fingerprint(whole) if mae.has_fingerprint else unit
        fingerprints = fingerprints + compared.double().sum(0).cpu()
        if alike.n_tokens > length:
            cut = mae.encode(alike.crop(length), precision=precision)
            unit = F.normalize(cut, dim=-1)
        if alike.n_tokens >= length:
            embeddings += unit.double().sum(0).cpu()
    return embeddings, torch.as_tensor(fingerprints)


def _batches(
    model: Any, prompts: Prompts, heads: Sequence[Head], batch_size: int
) -> Iterator[tuple[int, Prompts, AttentionPatterns]]:
    """Each batch of prompts with the place of its first and the patterns of these heads."""
    start = 0
    for batch in prompts.split(batch_size):
        yield start, batch, collect_patterns(model, batch, heads)
        start += len(batch)


class _TypicalSearch:
    """The pattern nearest to each head's mean direction so far."""

    def __init__(
        self,
        mae: APMAE,
        means: Float[Tensor, "head d_embed"],
        length: int,
        precision: torch.dtype | None,
    ) -> None:
        self._mae, self._means = mae, means
        self._length, self._precision = length, precision
        self._best = torch.full((len(means),), -torch.inf, dtype=torch.float64)
        self._prompts = torch.zeros(len(means), dtype=torch.long)
        self._patterns = torch.zeros(len(means), length, length)

    def see(self, prompt: int, attention: Float[Tensor, "head query key"]) -> None:
        n = self._length
        if attention.shape[-1] < n:
            return
        cut = attention[:, :n, :n]
        embeddings = F.normalize(self._mae.encode(cut, precision=self._precision), dim=-1)
        near = (embeddings.double().cpu() * self._means).sum(-1)
        nearer = near > self._best
        self._best[nearer] = near[nearer]
        self._prompts[nearer] = prompt
        self._patterns[nearer] = cut.float().cpu()[nearer]

    def found(self) -> list[TypicalPattern]:
        habits = self._mae.expect(self._patterns, None, precision=self._precision).cpu()
        return [
            TypicalPattern(*each)
            for each in zip(self._prompts.tolist(), self._patterns, habits, strict=True)
        ]
