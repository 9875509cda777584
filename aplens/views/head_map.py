"""A map of the heads of one or several models: which are of a kind, by their fingerprints."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from aplens._progress import Progress, show_progress
from aplens._tokens import readable_text
from aplens._words import shorten
from aplens.correctness.clusters import Reducer
from aplens.correctness.observing import fingerprint_mae
from aplens.describe.fingerprints import ModelHeads, measure_heads
from aplens.describe.kin import Group, centre, find_nearest, group_heads, lay_out, mutual_nearest
from aplens.describe.map_file import read_map, write_map
from aplens.describe.reading import choose_mae, fit_context, leave_out_short
from aplens.heads import Head, HeadsLike, parse_heads
from aplens.mae import APMAE
from aplens.models import describe_model
from aplens.patterns.templates import TEMPLATES
from aplens.plots import plot_head_places
from aplens.prompts import Prompts, PromptsLike, read_prompts
from aplens.views.embed import View
from aplens.views.map_page import build_page
from aplens.views.wording import count

if TYPE_CHECKING:
    import pandas as pd

#: Groups of like heads, on the page and by default.
N_GROUPS = 12


@dataclass(frozen=True, repr=False)
class HeadMap:
    """The heads of one or several models, each by its fingerprint; a notebook shows the page.

    A head's fingerprint is the mean over prompts of `APMAE.fingerprint`. Heads are compared by the
    cosine of their fingerprints' differences from the mean of all heads on the map: what all heads
    have in common is taken out. So a similarity depends on which models are on the map.

    Attributes:
        models: What is known of each model's heads.
        mae: Which AP-MAE made the fingerprints: a hash of its configuration and weights.

    Raises:
        ValueError: When there is no model, two have one name, or their fingerprints differ in size.
    """

    models: tuple[ModelHeads, ...]
    mae: str

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("a map needs at least one model, got none")
        _refuse_repeated([each.name for each in self.models])
        sizes = {each.name: each.fingerprints.shape[1] for each in self.models}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"fingerprints of different sizes do not compare: {sizes}")

    @classmethod
    def join(cls, maps: Iterable[HeadMap]) -> HeadMap:
        """One map of the models of several, made with the same AP-MAE on the same prompts.

        For models that do not fit into memory together: map one after the other.

        Raises:
            ValueError: When there is no map, two models have one name, or the AP-MAEs differ.
        """
        maps = list(maps)
        if len({each.mae for each in maps}) > 1:
            raise ValueError(
                "fingerprints of different AP-MAEs do not compare: map all models with one"
            )
        models = tuple(model for each in maps for model in each.models)
        return cls(models, maps[0].mae if maps else "")

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names on this map."""
        return tuple(each.name for each in self.models)

    def __len__(self) -> int:
        """Heads."""
        return sum(len(each.heads) for each in self.models)

    def __iter__(self) -> Iterator[tuple[str, Head]]:
        """Each model's name with each of its heads."""
        return ((each.name, head) for each in self.models for head in each.heads)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(each.heads)} of {each.name}" for each in self.models)
        prompts = count(max(len(each.texts) for each in self.models), "prompt")
        return f"HeadMap({count(len(self), 'head')}: {sizes}; {prompts})"

    def to_frame(self) -> pd.DataFrame:
        """One row a head, with its name as index.

        Columns: `model`, `layer`, `head`; `template`, the name of its pattern on repeated random
        tokens, and `template_share`, on which share of them it has it; one column for each template
        with the share of attention that it holds there; `spread`, how much the head varies with the
        prompt, from 0 to 1; `between_halves`, 1 - the similarity of its fingerprints on either half
        of the prompts, NaN for a single prompt.
        """
        frame = self._rows(range(len(self)))
        frame["template_share"] = torch.cat([each.template_shares for each in self.models]).numpy()
        scores = torch.cat([each.template_scores for each in self.models])
        frame[list(TEMPLATES)] = scores.numpy()
        frame["spread"] = torch.cat([each.spread for each in self.models]).numpy()
        between = torch.cat([self._between_halves(each) for each in self.models])
        frame["between_halves"] = between.numpy()
        return frame

    def nearest(
        self, head: HeadsLike, k: int = 5, *, model: str | None = None, among: str | None = None
    ) -> pd.DataFrame:
        """The heads most like one.

        Args:
            head: Which head, such as "L5H1".
            k: How many.
            model: Whose head it is (default: the first model's).
            among: Whose heads to look among (default: those of all models).

        Returns:
            One row a head, the nearest first, its name as index: `model`, `layer`, `head`,
            `template`, `similarity` (from -1 to 1).

        Raises:
            ValueError: When there is no such model or head, several heads are named, or `k` is
                less than 1.
        """
        if k < 1:
            raise ValueError(f"k must be 1 or more, got {k}")
        place = self._place(head, self.names[0] if model is None else model)
        of = slice(None) if among is None else self._slice(among)
        found = find_nearest(self.directions, place, k, of)
        frame = self._rows([other for other, _ in found])
        frame["similarity"] = torch.tensor([similarity for _, similarity in found]).numpy()
        return frame

    def twins(self) -> pd.DataFrame:
        """Heads of two models that are each other's nearest, the most alike first.

        Returns:
            One row a pair, the first head's name as index: `model`, `layer`, `head`, `template`,
            and `twin_model`, `twin`, `twin_template`, `similarity`.

        Raises:
            ValueError: When the map has a single model.
        """
        import pandas as pd

        if len(self.models) < 2:
            raise ValueError(f"twins are heads of two models, this map has only {self.names[0]}")
        frames = []
        for one, other in combinations(map(self._slice, self.names), 2):
            similarities = self.directions[one] @ self.directions[other].T
            rows, columns = mutual_nearest(similarities).tolist()
            frame = self._rows([one.start + row for row in rows])
            twins = self._rows([other.start + column for column in columns])
            frame["twin_model"], frame["twin"] = twins["model"].to_numpy(), twins.index
            frame["twin_template"] = twins["template"].to_numpy()
            frame["similarity"] = similarities[rows, columns].numpy()
            frames.append(frame)
        return pd.concat(frames).sort_values("similarity", ascending=False, kind="stable")

    def groups(self, n_groups: int = N_GROUPS) -> pd.DataFrame:
        """Heads of all models in groups of like ones (Ward's method), the largest first.

        Args:
            n_groups: How many.

        Returns:
            One row a group: `name`, the template that at least half of its heads follow on repeated
            random tokens, or "mixed"; `share`, which share of them follows the most frequent;
            `n_heads`; and for each model, by its name, the group's heads of it, the one nearest to
            the group's middle first.

        Raises:
            ValueError: When `n_groups` is not from 1 to the number of heads.
        """
        import pandas as pd

        every = list(self)
        rows = []
        for group in self._group(n_groups):
            heads = [every[member] for member in group.members]
            of_model = {n: [str(head) for name, head in heads if name == n] for n in self.names}
            row = {"name": group.name, "share": group.share, "n_heads": len(heads), **of_model}
            rows.append(row)
        return pd.DataFrame(rows, index=pd.RangeIndex(len(rows), name="group"))

    def plot(self, reducer: Reducer = "pca") -> Figure:
        """Every head in a plane, like heads near each other: colours templates, shapes models.

        Args:
            reducer: "pca", or "umap", which needs umap-learn.
        """
        frame = self._rows(range(len(self)))
        frame[["x", "y"]], _ = lay_out(self.directions, reducer)
        return plot_head_places(frame)

    def show(self, reducer: Reducer = "pca") -> View:
        """The page, to show in a notebook or to `save`: point at a head, click it, search "L5H1".

        Args:
            reducer: "pca", or "umap", which needs umap-learn.
        """
        places, method = lay_out(self.directions, reducer)
        groups = self._group(min(N_GROUPS, len(self)))
        slices = [self._slice(name) for name in self.names]
        return build_page(self.models, self.directions, slices, places, groups, method)

    def _repr_html_(self) -> str:
        return self.show()._repr_html_()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the map as one safetensors file."""
        write_map(path, self.models, self.mae)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> HeadMap:
        """Read what `save` wrote.

        Raises:
            OSError: When the file cannot be read.
            ValueError: When it is no map of heads, or a damaged one; the message names the file.
        """
        models, mae = read_map(path)
        try:
            return cls(models, mae)
        except ValueError as error:
            raise ValueError(f"{path} is a damaged map of heads: {error}") from error

    @cached_property
    def directions(self) -> Float[Tensor, "head d"]:
        """Every head's fingerprint from the mean of all heads on the map, of length 1.

        `directions @ directions.T` are the similarities of all heads, in the order of `to_frame`.
        """
        return centre(self._fingerprints, self._middle)

    @cached_property
    def _fingerprints(self) -> Float[Tensor, "head d"]:
        return torch.cat([each.fingerprints for each in self.models])

    @cached_property
    def _middle(self) -> Float[Tensor, " d"]:
        return self._fingerprints.mean(0)

    def _between_halves(self, model: ModelHeads) -> Float[Tensor, " head"]:
        if model.halves is None:
            return torch.full((len(model.heads),), torch.nan)
        first, second = (centre(half, self._middle) for half in model.halves)
        return 1 - (first * second).sum(-1)

    def _group(self, n_groups: int) -> list[Group]:
        return group_heads(self.directions, self._templates, n_groups)

    @cached_property
    def _table(self) -> pd.DataFrame:
        """The first columns of every table, of all heads."""
        import pandas as pd

        columns = {
            "model": [name for name, _ in self],
            "layer": [head.layer for _, head in self],
            "head": [head.head for _, head in self],
            "template": self._templates,
        }
        return pd.DataFrame(columns, pd.Index([str(head) for _, head in self], name="name"))

    def _rows(self, places: Sequence[int]) -> pd.DataFrame:
        return self._table.iloc[list(places)].copy()

    @property
    def _templates(self) -> list[str]:
        return [name for each in self.models for name in each.templates]

    def _model(self, name: str) -> ModelHeads:
        if name not in self.names:
            raise ValueError(f"no model {shorten(name)} is on this map: {', '.join(self.names)}")
        return self.models[self.names.index(name)]

    def _slice(self, name: str) -> slice:
        """Where a model's heads stand among all."""
        found = self._model(name)
        before = self.models[: self.names.index(name)]
        start = sum(len(each.heads) for each in before)
        return slice(start, start + len(found.heads))

    def _place(self, head: HeadsLike, model: str) -> int:
        found = self._model(model)
        heads = parse_heads(head, found.model)
        if len(heads) != 1 or heads[0] not in found.heads:
            names = ", ".join(map(str, heads)) or "none"
            raise ValueError(f"expected one head of {model} that has patterns, got {names}")
        return self._slice(model).start + found.heads.index(heads[0])


def map_heads(
    models: Any | Sequence[Any] | Mapping[str, Any],
    prompts: PromptsLike,
    *,
    mae: APMAE | str | os.PathLike[str] = "auto",
    batch_size: int = 8,
    precision: torch.dtype | None = None,
    seed: int = 0,
    progress: bool | Progress = True,
) -> HeadMap:
    """Map the heads of one or several models by what they do: like heads have like fingerprints.

    A head's fingerprint is the mean over prompts of `APMAE.fingerprint`, of unit length each. A few
    dozen prompts of different kinds, as long as the AP-MAE's context, tell heads apart best.

    Each prompt is run once by each model, and memory does not grow with their number. A few prompts
    of repeated random tokens are run as well, for the names of templates.

    Args:
        models: A HookedTransformer or TransformerBridge; several; or a dictionary of names to
            models. Without names, a model is called what its configuration calls it.
        prompts: Texts, which each model's own tokenizer reads; token ids or scenarios, which all
            models must then understand. For each model's own prompts map one after the other, and
            join the maps (`HeadMap.join`).
        mae: An AP-MAE that has a fingerprint, or its name, as for `APMAE.from_pretrained`. "auto"
            (the default): "aplens-short" where the middle prompt has up to 64 tokens, else
            "aplens-base". Name one where maps are to be joined: only those of one AP-MAE can be.
        batch_size: Prompts a forward pass.
        precision: The AP-MAE's: float32 or bfloat16 (default: what its device is good at).
        seed: Of the halves of the prompts and of the repeated tokens.
        progress: A bar (the default), nothing (False), or a function called with (prompts run,
            prompts to run), over all models.

    Warns:
        UserWarning: Prompts are longer than the AP-MAE's context: their first tokens are taken.
            Or no longer than one of its patches: they have no habit, and are left out.

    Raises:
        ValueError: When there is no model, two have one name, the AP-MAE has no fingerprint, no
            prompt is longer than one patch, or the prompts are empty, too long for a model or not
            its own.
        TypeError: When `prompts` is no form of prompts, or `mae` neither an AP-MAE nor a name.
        UnsupportedModelError: When a model has no causal attention patterns.
        aplens.mae.CheckpointError: When there is no AP-MAE of that name.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    named = _name_models(models)
    whole = [read_prompts(model, prompts) for model in named.values()]
    mae = choose_mae(mae, torch.cat([each.lengths.cpu() for each in whole]))
    read = []
    for cut in fit_context(mae, *whole):  # a loop, not a list: whoever called is to be warned
        read.append(leave_out_short(mae, cut)[1])
    show, total = show_progress(progress, "Mapping heads"), sum(map(len, read))
    done, found = 0, []
    for (name, model), own in zip(named.items(), read, strict=True):

        def tell(n: int, start: int = done) -> object:
            return show(start + n, total)

        found.append(
            measure_heads(
                model,
                own,
                name=name,
                texts=_read_texts(model, own),
                mae=mae,
                batch_size=batch_size,
                precision=precision,
                seed=seed,
                progress=tell,
            )
        )
        done += len(own)
    return HeadMap(tuple(found), fingerprint_mae(mae))


def _name_models(models: Any) -> dict[str, Any]:
    """Each model by its name; all are looked at before any is run."""
    if isinstance(models, Mapping):
        for name, model in models.items():
            if not isinstance(name, str) or not name:
                raise ValueError(f"expected names of models as text, got {shorten(name)}")
            describe_model(model)
        named = dict(models)
    else:
        several = list(models) if isinstance(models, Sequence) else [models]
        names = [describe_model(model).name for model in several]
        _refuse_repeated(names)
        named = dict(zip(names, several, strict=True))
    if not named:
        raise ValueError("a map needs at least one model, got none")
    return named


def _refuse_repeated(names: Sequence[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"several models are called {', '.join(map(shorten, repeated))}: give a dictionary of "
            "names to models, such as {'before': model, 'after': tuned}"
        )


def _read_texts(model: Any, prompts: Prompts) -> tuple[str, ...]:
    """What each prompt reads; its token ids where the model has no tokenizer."""
    tokenizer = getattr(model, "tokenizer", None)
    ids = [prompts.ids(place) for place in range(len(prompts))]
    if tokenizer is None:
        return tuple(" ".join(map(str, each)) for each in ids)
    return tuple(readable_text(tokenizer, each) for each in ids)
