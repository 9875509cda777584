"""One catalogue of recurring patterns across heads, domains and models.

The paper clusters each head alone and leaves the clusters unnamed. Here the patterns of all heads
are clustered together, so that the same template in two heads, or two models, is one entry; every
cluster is named by scores measured on its members, and a catalogue that was saved places the
patterns of another model without clustering again.

Clusters are found along the directions in which embeddings tell how strongly each template is
followed (a ridge regression a template). In the whole embedding space they part patterns by what
varies most between them, which is seldom the template.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from aplens.heads import Head
from aplens.models import describe_model
from aplens.patterns import (
    MIXED,
    MIXED_BELOW,
    TEMPLATES,
    log_normalize,
    stream_patterns,
    template_scores,
    template_strengths,
)
from aplens.prompts import PromptsLike, read_prompts
from aplens.study import atomic_write
from aplens.style import PATTERN_COLORS, WIDTH
from paper.text_templates import TEXT_TEMPLATES, text_template_strengths

if TYPE_CHECKING:
    import pandas as pd

    from aplens.mae import APMAE

#: What strengths are of, in their order.
SCORES = (*TEMPLATES, *TEXT_TEMPLATES)

#: Penalty of the regressions, for each pattern, on embeddings of length 1.
_RIDGE = 2e-6

#: Rows and columns of a typical picture.
PICTURE_SIZE = 32

#: A cluster that follows no template is named by the two strongest when each has this strength.
_PART_FROM = 0.15

_FORMAT = "aplens.template_catalogue"


@dataclass(frozen=True)
class PatternSample:
    """The patterns of one model's heads on some prompts.

    Attributes:
        source: Where they come from, such as "smollm2-135m, java".
        heads: The heads.
        embeddings: `Float16[ndarray, "prompt head d_embed"]`.
        strengths: `Float32[ndarray, "prompt head score"]`, of `SCORES`; NaN where a prompt says
            nothing about one.
        pictures: `Float16[ndarray, "prompt head 2 32 32"]`: the log-normalized pattern made
            smaller, and the corner of the last 32 tokens as it is (0 before a shorter prompt).
    """

    source: str
    heads: tuple[Head, ...]
    embeddings: np.ndarray
    strengths: np.ndarray
    pictures: np.ndarray

    def __len__(self) -> int:
        """Prompts."""
        return len(self.embeddings)


@torch.no_grad()
def sample_patterns(
    model: Any,
    prompts: PromptsLike,
    mae: APMAE,
    source: str = "",
    *,
    batch_size: int = 8,
    progress: Callable[[int, int], object] | None = None,
) -> PatternSample:
    """Run a model and describe every head's pattern on every prompt."""
    info = describe_model(model)
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise ValueError(f"{info.name} has no tokenizer: delimiters and brackets cannot be told")
    read = read_prompts(model, prompts)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    heads: tuple[Head, ...] = ()
    for rows, patterns, _ in stream_patterns(model, read, None, batch_size):
        heads = patterns.heads
        for place, prompt in enumerate(range(rows.start, rows.stop)):
            attention, ids = patterns.prompt(place), read.ids(prompt)
            texts = [tokenizer.decode([token]) for token in ids]
            parts.append(_describe(attention, torch.tensor(ids), texts, mae))
        if progress is not None:
            progress(rows.stop, len(read))
    embeddings, strengths, pictures = (np.stack(each) for each in zip(*parts, strict=True))
    return PatternSample(source or info.name, heads, embeddings, strengths, pictures)


def _describe(
    attention: Float[Tensor, "head query key"],
    tokens: Int[Tensor, " pos"],
    texts: Sequence[str],
    mae: APMAE,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    named = template_strengths(template_scores(attention, tokens), tokens)
    strengths = torch.cat([named, text_template_strengths(attention, texts)], dim=-1)
    scaled = log_normalize(attention)
    whole = F.interpolate(scaled[:, None], (PICTURE_SIZE, PICTURE_SIZE), mode="area")
    corner = scaled[:, None, -PICTURE_SIZE:, -PICTURE_SIZE:]
    before = PICTURE_SIZE - corner.shape[-1]
    pictures = torch.cat([whole, F.pad(corner, (before, 0, before, 0))], dim=1)
    embeddings = mae.encode(attention)
    return (
        embeddings.cpu().half().numpy(),
        strengths.float().cpu().numpy(),
        pictures.cpu().half().numpy(),
    )


@dataclass(frozen=True)
class TemplateCatalogue:
    """Clusters of patterns with their names.

    Attributes:
        centre: `Float[ndarray, "d_embed"]`, what is taken off unit embeddings.
        directions: `Float[ndarray, "score d_embed"]`, along which embeddings tell each score.
        centres: `Float[ndarray, "cluster score"]`; a pattern belongs to the nearest.
        strengths: `Float[ndarray, "cluster score"]`, means over the members.
        pictures: `Float[ndarray, "cluster 2 32 32"]`, the mean of the members' pictures.
        counts: `Int[ndarray, "cluster"]`, members when it was made.
        metadata: JSON-able facts about how it was made.
    """

    centre: np.ndarray
    directions: np.ndarray
    centres: np.ndarray
    strengths: np.ndarray
    pictures: np.ndarray
    counts: np.ndarray
    metadata: dict[str, Any] = field(default_factory=dict)

    _ARRAYS = ("centre", "directions", "centres", "strengths", "pictures", "counts")

    @classmethod
    def fit(
        cls,
        samples: Sequence[PatternSample],
        *,
        n_clusters: int = 100,
        seed: int = 0,
    ) -> TemplateCatalogue:
        """Cluster the patterns of all samples together: k-means along the templates' directions.

        Every sample counts the same, however many patterns it has.
        """
        from sklearn.cluster import KMeans

        rows = np.concatenate([_unit(sample) for sample in samples])
        if not 1 < n_clusters <= len(rows):
            raise ValueError(f"n_clusters must be 2 to {len(rows)} (patterns), got {n_clusters}")
        weights = np.concatenate([np.full(_n_patterns(s), 1 / _n_patterns(s)) for s in samples])
        weights /= weights.mean()
        centre = np.average(rows, axis=0, weights=weights)
        strengths = np.concatenate([_flat(sample.strengths) for sample in samples])
        directions = _directions(rows - centre, strengths, weights)
        reduced = (rows - centre) @ directions.T
        means = KMeans(n_clusters, n_init=3, random_state=seed)
        labels = means.fit_predict(reduced, sample_weight=weights)
        pictures = np.concatenate([_flat(sample.pictures) for sample in samples])
        order = np.argsort(-np.bincount(labels, weights, n_clusters), kind="stable")
        members = [np.flatnonzero(labels == cluster) for cluster in order]
        return cls(
            centre=centre.astype(np.float32),
            directions=directions.astype(np.float32),
            centres=means.cluster_centers_[order].astype(np.float32),
            strengths=np.stack([_mean(strengths[some], weights[some]) for some in members]),
            pictures=np.stack([_mean(pictures[some], weights[some]) for some in members]),
            counts=np.array([len(some) for some in members]),
            metadata={
                "sources": [sample.source for sample in samples],
                "n_patterns": len(rows),
                "seed": seed,
                "scores": list(SCORES),
            },
        )

    @property
    def names(self) -> list[str]:
        """Each cluster's name, from its members' mean strengths."""
        return [name_cluster(row) for row in self.strengths]

    def assign(
        self, embeddings: Float[np.ndarray, "*pattern d_embed"]
    ) -> Int[np.ndarray, "*pattern"]:
        """The cluster of each pattern, which may be of another model.

        Args:
            embeddings: As the AP-MAE gives them, with the pooling of the samples.

        Raises:
            ValueError: When the width differs, or a value is not finite.
        """
        values = np.asarray(embeddings, dtype=np.float32)
        if values.shape[-1] != len(self.centre):
            raise ValueError(f"expected embeddings of {len(self.centre)}, got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("embeddings contain NaN or infinity")
        flat = _unit_rows(values.reshape(-1, values.shape[-1]))
        reduced = (flat - self.centre) @ self.directions.T
        # |a - b|² without |a|², which is the same for every centre.
        distances = np.square(self.centres).sum(axis=1) - 2 * reduced @ self.centres.T
        return distances.argmin(axis=1).reshape(values.shape[:-1])

    def assign_names(self, embeddings: Float[np.ndarray, "*pattern d_embed"]) -> np.ndarray:
        """The name of each pattern's template."""
        return np.array(self.names, dtype=object)[self.assign(embeddings)]

    def to_frame(self) -> pd.DataFrame:
        """One row a cluster, the most frequent first: `name`, `count`, and the mean strengths."""
        import pandas as pd

        frame = pd.DataFrame({"name": self.names, "count": self.counts})
        frame[list(SCORES)] = self.strengths
        return frame

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the catalogue as one safetensors file."""
        from safetensors.numpy import save

        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in self._ARRAYS}
        facts = {"format": _FORMAT, "version": "1", "metadata": json.dumps(self.metadata)}
        with atomic_write(Path(path)) as temporary:
            temporary.write_bytes(save(arrays, facts))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TemplateCatalogue:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: When there is no such file.
            ValueError: When it holds no catalogue, or a damaged one; the message names the file.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as file:
                facts = file.metadata() or {}
                if facts.get("format") != _FORMAT or facts.get("version") != "1":
                    raise ValueError("it is not one of version 1")
                missing = sorted(set(cls._ARRAYS) - set(file.keys()))
                if missing:
                    raise ValueError(f"{missing[0]} is missing")
                arrays = {name: file.get_tensor(name) for name in cls._ARRAYS}
            metadata = json.loads(facts.get("metadata", "{}"))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} holds no template catalogue: {error}") from error
        catalogue = cls(**arrays, metadata=metadata)
        catalogue._check(path)
        return catalogue

    def _check(self, path: str | os.PathLike[str]) -> None:
        n, width = len(self.centres), len(self.centre)
        expected = {
            "directions": (len(SCORES), width),
            "centres": (n, len(SCORES)),
            "strengths": (n, len(SCORES)),
            "pictures": (n, 2, PICTURE_SIZE, PICTURE_SIZE),
            "counts": (n,),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if found != shape:
                raise ValueError(
                    f"{path} holds no template catalogue: {name} must be {shape}, got {found}"
                )


def name_cluster(strengths: Float[np.ndarray, " score"]) -> str:
    """Name a cluster by the mean strengths of its members.

    The strongest template, if it reaches `MIXED_BELOW` ("local" only where neither "previous_token"
    nor "self" does, whose keys lie in its window); else the two strongest joined by "+", where both
    are there in part; else "mixed".
    """
    strong = dict(zip(SCORES, np.nan_to_num(strengths, nan=-np.inf), strict=True))
    if max(strong["previous_token"], strong["self"]) >= MIXED_BELOW:
        strong["local"] = -np.inf
    first, second = sorted(strong, key=lambda name: -strong[name])[:2]
    if strong[first] >= MIXED_BELOW:
        return first
    if strong[second] >= _PART_FROM:
        return " + ".join(sorted((first, second), key=SCORES.index))
    return MIXED


def describe_samples(
    catalogue: TemplateCatalogue, samples: Sequence[PatternSample]
) -> pd.DataFrame:
    """How often each template occurs, and in how many heads.

    Returns:
        One row for each sample and name: `source`, `name`, `share` (of the sample's patterns),
        `n_heads` (heads in which it is the commonest), `n_heads_with` (heads in which at least a
        tenth of the patterns are of it), `top_heads` (the five with most of it).
    """
    import pandas as pd

    rows = []
    for sample in samples:
        shares = head_shares(catalogue, sample)
        most = shares.idxmax(axis=1)
        for name in shares.columns:
            top = shares[name].sort_values(ascending=False, kind="stable")
            rows.append(
                {
                    "source": sample.source,
                    "name": name,
                    "share": shares[name].mean(),
                    "n_heads": int((most == name).sum()),
                    "n_heads_with": int((shares[name] >= 0.1).sum()),
                    "top_heads": ", ".join(top.index[top >= 0.1][:5]),
                }
            )
    return pd.DataFrame(rows)


def head_shares(catalogue: TemplateCatalogue, sample: PatternSample) -> pd.DataFrame:
    """How a head switches: one row a head, one column a name, the share of its patterns."""
    import pandas as pd

    found = catalogue.assign_names(sample.embeddings)
    names = list(dict.fromkeys(catalogue.names))
    shares = {name: (found == name).mean(axis=0) for name in names}
    return pd.DataFrame(shares, index=pd.Index([str(head) for head in sample.heads], name="head"))


def describe_switching(
    catalogue: TemplateCatalogue, samples: Sequence[PatternSample]
) -> pd.DataFrame:
    """How much heads switch between templates with the input.

    Returns:
        One row a sample: `source`; `one`, `two`, `more`: heads with that many templates of at least
        a tenth of their patterns each; `commonest`, the share of patterns that follow their head's
        commonest template; `most_switching`, the head whose commonest template has the smallest
        share, with its templates.
    """
    import pandas as pd

    rows = []
    for sample in samples:
        shares = head_shares(catalogue, sample)
        n_templates = (shares >= 0.1).sum(axis=1)
        least = int(np.argmin(shares.max(axis=1)))
        mix = shares.iloc[least].sort_values(ascending=False, kind="stable")
        rows.append(
            {
                "source": sample.source,
                "one": int((n_templates == 1).sum()),
                "two": int((n_templates == 2).sum()),
                "more": int((n_templates > 2).sum()),
                "commonest": float(shares.max(axis=1).mean()),
                "most_switching": f"{sample.heads[least]}: "
                + ", ".join(f"{name} {share:.0%}" for name, share in mix[mix >= 0.1].items()),
            }
        )
    return pd.DataFrame(rows)


def compare_with_scores(
    catalogue: TemplateCatalogue, samples: Sequence[PatternSample]
) -> pd.DataFrame:
    """Whether names given through embeddings agree with what is measured on the patterns.

    TransformerLens `detect_head` measures "previous_token", "duplicate_token" and "induction"; its
    scores are those that strengths are made of.

    Returns:
        One row for each sample and score that names a cluster: `source`, `name`, `heads` (whose
        mean strength reaches `MIXED_BELOW`), `found` (of these, heads whose commonest template has
        that name), `named` (heads whose commonest template has it), and `correlation` (Spearman,
        over heads, of mean strength and the share of patterns so named).
    """
    import pandas as pd
    from scipy.stats import spearmanr

    rows = []
    for sample in samples:
        shares, means = head_shares(catalogue, sample), np.nanmean(sample.strengths, axis=0)
        most = shares.idxmax(axis=1).to_numpy()
        for score, name in enumerate(SCORES):
            if name not in shares:
                continue
            strong = means[:, score] >= MIXED_BELOW
            varies = shares[name].nunique() > 1 and np.ptp(means[:, score]) > 0
            together = spearmanr(means[:, score], shares[name]).statistic if varies else np.nan
            rows.append(
                {
                    "source": sample.source,
                    "name": name,
                    "heads": int(strong.sum()),
                    "found": int((strong & (most == name)).sum()),
                    "named": int((most == name).sum()),
                    "correlation": float(together),
                }
            )
    return pd.DataFrame(rows)


def check_names(
    samples: Sequence[PatternSample], *, n_clusters: int = 100, seed: int = 0
) -> pd.DataFrame:
    """Names given to patterns of new prompts, beside those that their own strengths give.

    A catalogue of half of each sample's prompts names the patterns of the other half.

    Returns:
        One row for each sample and name, and one for all names: `source`, `name`, `measured` and
        `named` (patterns), `precision` (share of those named that are measured so), `recall`.
    """
    import pandas as pd

    halves = [_halves(sample, seed) for sample in samples]
    catalogue = TemplateCatalogue.fit([one for one, _ in halves], n_clusters=n_clusters, seed=seed)
    rows = []
    for _, new in halves:
        found = catalogue.assign_names(new.embeddings).ravel()
        measured = np.array([name_cluster(row) for row in _flat(new.strengths)], dtype=object)
        right = found == measured
        shown = {"all": np.ones(len(found), dtype=bool)}
        shown |= {name: measured == name for name in dict.fromkeys([*SCORES, *catalogue.names])}
        for name, of_name in shown.items():
            named = found == name if name != "all" else of_name
            if named.any() or of_name.any():
                rows.append(
                    {
                        "source": new.source,
                        "name": name,
                        "measured": int(of_name.sum()),
                        "named": int(named.sum()),
                        "precision": float(right[named].mean()) if named.any() else np.nan,
                        "recall": float(right[of_name].mean()) if of_name.any() else np.nan,
                    }
                )
    return pd.DataFrame(rows)


def measure_stability(
    catalogue: TemplateCatalogue,
    samples: Sequence[PatternSample],
    seeds: Sequence[int] = (1, 2, 3),
) -> pd.DataFrame:
    """Adjusted Rand index between a catalogue and others of other seeds, or of half the prompts.

    Returns:
        One row a refit: `refit` ("seed" or "half the prompts"), `seed`, `clusters` and `names`: the
        adjusted Rand index of the two partitions of all patterns, by cluster and by name.
    """
    import pandas as pd
    from sklearn.metrics import adjusted_rand_score

    every = np.concatenate([_flat(sample.embeddings) for sample in samples])
    clusters, names = catalogue.assign(every), catalogue.assign_names(every)
    rows = []
    for seed in seeds:
        halves = [_halves(sample, seed)[0] for sample in samples]
        for refit, some in (("seed", list(samples)), ("half the prompts", halves)):
            other = TemplateCatalogue.fit(some, n_clusters=len(catalogue.centres), seed=seed)
            rows.append(
                {
                    "refit": refit,
                    "seed": seed,
                    "clusters": adjusted_rand_score(clusters, other.assign(every)),
                    "names": adjusted_rand_score(
                        names.astype(str), other.assign_names(every).astype(str)
                    ),
                }
            )
    return pd.DataFrame(rows)


def plot_catalogue(catalogue: TemplateCatalogue, columns: int = 4) -> Figure:
    """The typical pattern of every template, the most frequent first.

    Beside the whole pattern, made smaller, stands the corner of its last 32 tokens.
    """
    names, counts = np.array(catalogue.names), catalogue.counts
    found = sorted(set(names), key=lambda name: -counts[names == name].sum())
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(1.2 * WIDTH, 0.8 * WIDTH / columns * rows), layout="constrained")
    panels = figure.subfigures(rows, columns, squeeze=False).ravel()
    # Cells on the diagonal of the whole, made smaller, mix the pattern with what lies above it.
    hidden = [np.triu(np.ones(catalogue.pictures.shape[-2:], dtype=bool), k) for k in (0, 1)]
    for panel, name in zip(panels, found, strict=False):
        members = names == name
        pictures = np.average(catalogue.pictures[members], axis=0, weights=counts[members])
        panel.suptitle(f"{name}, {counts[members].sum() / counts.sum():.1%}", fontsize=7)
        for axis, picture, above in zip(panel.subplots(1, 2), pictures, hidden, strict=True):
            axis.set_axis_off()
            masked = np.ma.masked_array(picture, above)
            axis.imshow(masked, cmap=PATTERN_COLORS, interpolation="nearest")
    return figure


def _halves(sample: PatternSample, seed: int) -> tuple[PatternSample, PatternSample]:
    """A sample's prompts, dealt out at random; one of a single prompt is both halves."""
    order = np.random.default_rng(seed).permutation(len(sample))
    middle = max(1, len(sample) // 2)
    parts = (order[:middle], order[middle:] if len(sample) > 1 else order)
    first, second = (
        PatternSample(
            sample.source,
            sample.heads,
            sample.embeddings[rows],
            sample.strengths[rows],
            sample.pictures[rows],
        )
        for rows in parts
    )
    return first, second


def _flat(values: np.ndarray) -> np.ndarray:
    return values.reshape(-1, *values.shape[2:])


def _unit(sample: PatternSample) -> Float[np.ndarray, "pattern d_embed"]:
    return _unit_rows(_flat(sample.embeddings).astype(np.float32))


def _unit_rows(rows: Float[np.ndarray, "pattern d_embed"]) -> Float[np.ndarray, "pattern d_embed"]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _n_patterns(sample: PatternSample) -> int:
    return sample.embeddings.shape[0] * sample.embeddings.shape[1]


def _directions(
    rows: Float[np.ndarray, "pattern d_embed"],
    strengths: Float[np.ndarray, "pattern score"],
    weights: Float[np.ndarray, " pattern"],
) -> Float[np.ndarray, "score d_embed"]:
    """Ridge regressions of each score; one that no pattern has gets a direction of zeros."""
    directions = np.zeros((strengths.shape[1], rows.shape[1]))
    damping = _RIDGE * len(rows) * np.eye(rows.shape[1])
    for score, values in enumerate(strengths.T):
        known = ~np.isnan(values)
        if known.any():
            x, y, w = rows[known], values[known], weights[known, None]
            y = y - np.average(y, weights=weights[known])
            directions[score] = np.linalg.solve((x * w).T @ x + damping, (x * w).T @ y)
    return directions


def _mean(values: np.ndarray, weights: Float[np.ndarray, " pattern"]) -> np.ndarray:
    """The weighted mean over patterns; a strength that is NaN counts for nothing."""
    values = values.astype(np.float32)
    shape = (len(weights),) + (1,) * (values.ndim - 1)
    known = ~np.isnan(values) * weights.reshape(shape)
    total = known.sum(axis=0)
    summed = (np.nan_to_num(values) * known).sum(axis=0)
    return np.divide(summed, total, out=np.full_like(summed, np.nan), where=total > 0)
