"""Which heads are of a kind, by their fingerprints: nearest heads, twins, groups, a plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from aplens.correctness.clusters import Reducer, fit_umap, require_reducer
from aplens.correctness.principal import fit_pca
from aplens.patterns.templates import MIXED

#: Heads around each one that the plane keeps together, and how tightly.
_N_NEIGHBORS, _MIN_DIST = 12, 0.25

#: A group has a template's name when at least this share of its heads follows it.
_NAMED_FROM = 0.5


def centre(
    fingerprints: Float[Tensor, "head d"], about: Float[Tensor, " d"]
) -> Float[Tensor, "head d"]:
    """Fingerprints as directions from what all heads have in common.

    Most heads look alike (they attend to the first token, and to near ones). Without this mean,
    cosines say how they differ from each other.
    """
    return F.normalize(fingerprints - about, dim=-1)


def find_nearest(
    directions: Float[Tensor, "head d"], place: int, k: int, among: slice = slice(None)
) -> list[tuple[int, float]]:
    """The up to k heads most like one, the nearest first: their places and similarities.

    It is no neighbour of its own. `among` is where the heads to look among stand.
    """
    places = range(len(directions))[among]
    similarities = directions[among] @ directions[place]
    order = similarities.argsort(descending=True, stable=True)[: k + 1].tolist()
    found = [(places[i], float(similarities[i])) for i in order if places[i] != place]
    return found[:k]


def mutual_nearest(similarities: Float[Tensor, "head other"]) -> Int[Tensor, "2 pair"]:
    """The rows and columns that are each other's most similar."""
    of_row, of_column = similarities.argmax(1), similarities.argmax(0)
    rows = torch.arange(len(similarities))
    mutual = of_column[of_row] == rows
    return torch.stack([rows[mutual], of_row[mutual]])


class Group(NamedTuple):
    """Places of heads that are alike, the one nearest to their middle first.

    It is named by the template that at least half of them follow, or "mixed"; `share` of them
    follows the most frequent one.
    """

    name: str
    share: float
    members: list[int]


def group_heads(
    directions: Float[Tensor, "head d"], templates: Sequence[str], n_groups: int
) -> list[Group]:
    """Part heads into groups of like directions (Ward's method), the largest group first."""
    if not 1 <= n_groups <= len(directions):
        raise ValueError(f"n_groups must be 1 to {len(directions)}, the heads, got {n_groups}")
    labels = np.zeros(len(directions), dtype=int)
    if n_groups > 1:
        from sklearn.cluster import AgglomerativeClustering

        labels = AgglomerativeClustering(n_groups).fit_predict(directions.double().numpy())
    groups = []
    for label in range(n_groups):
        members = np.flatnonzero(labels == label).tolist()
        middle = directions[members].mean(0)
        order = (directions[members] @ middle).argsort(descending=True, stable=True)
        nearest_first = [members[place] for place in order.tolist()]
        names = [templates[member] for member in members]
        name = max(dict.fromkeys(names), key=names.count)
        share = names.count(name) / len(names)
        groups.append(Group(name if share >= _NAMED_FROM else MIXED, share, nearest_first))
    return sorted(groups, key=lambda group: (-len(group.members), group.members[0]))


def lay_out(
    directions: Float[Tensor, "head d"], reducer: Reducer = "pca"
) -> tuple[Float[np.ndarray, "head 2"], str]:
    """Places in a plane, like heads near each other; and by what: "umap" or "pca".

    So few heads that each would be every other's neighbour are laid out by PCA in any case.
    """
    rows = directions.float().numpy()
    require_reducer(reducer)
    if reducer == "pca" or len(rows) <= _N_NEIGHBORS:
        places = np.zeros((len(rows), 2))
        found = fit_pca(rows, min(2, *rows.shape)).transform(rows)
        places[:, : found.shape[1]] = found
        return places, "pca"
    return fit_umap(rows, 2, _N_NEIGHBORS, _MIN_DIST), "umap"
