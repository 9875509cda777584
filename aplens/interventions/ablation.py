"""Switch attention heads off while a block of code runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from aplens._documents import read_seed, require_choice
from aplens.heads import Head, HeadsLike, parse_heads
from aplens.models import ModelInfo, attach_hooks, describe_model, run_until, z_hook_name
from aplens.prompts import Prompts, PromptsLike, read_prompts

AblationMethod: TypeAlias = Literal["zero", "mean", "resample"]

#: What stands in for some heads' outputs in one layer: (heads, z, numbers) -> a tensor that
#: broadcasts to [batch, pos, len(heads), d_head]. `numbers` says which prompt of a larger set each
#: row of the batch is.
Substitute: TypeAlias = Callable[[Sequence[Head], Tensor, Int[Tensor, " batch"]], Tensor]

_REFERENCE_BATCH = 16


@contextmanager
def ablate_heads(
    model: Any,
    heads: HeadsLike,
    *,
    method: AblationMethod = "zero",
    reference: PromptsLike | None = None,
    seed: int = 0,
) -> Iterator[None]:
    """Replace the output of the chosen heads, at every position, inside the `with` block.

    The hook sits on `hook_z`, before the output projection. It comes off when the block ends, also
    by an exception; hooks of others stay. Blocks nest: where both name a head, the inner one acts
    last. Gradients flow to everything but the replaced outputs.

    Under `model.generate`, with or without a key-value cache, `zero` and `mean` act on the prompt
    and on every generated token. `resample` has no outputs for generated positions and raises
    there.

    Args:
        model: A HookedTransformer or TransformerBridge.
        heads: The heads, for every prompt alike: anything `parse_heads` takes. Where each prompt is
            to have its own, `scale_heads(per_prompt=)` takes zeros.
        method: What replaces a head's output. `zero`: zeros. `mean`: its mean output over all
            positions of the reference prompts. `resample`: its output at the same position of a
            prompt drawn from the reference, the same in every layer.
        reference: The reference prompts, in any form that `read_prompts` takes; run once on entry.
            `zero` does not use them.
        seed: Decides which prompt `resample` takes.

    Raises:
        ValueError: On entry: a head is out of range, the method is unknown, `mean` or `resample`
            has no reference, or the seed is no whole number from 0 to 2**63 - 1. In the forward
            pass: `resample` got a reference whose prompts have another length.
    """
    chosen = parse_heads(heads, describe_model(model))
    with ablate_with(model, chosen, make_substitute(model, chosen, method, reference, seed)):
        yield


@contextmanager
def ablate_with(
    model: Any,
    heads: Sequence[Head],
    substitute: Substitute,
    numbers: Int[Tensor, " batch"] | None = None,
) -> Iterator[None]:
    """`ablate_heads` with a substitute made before, so that many choices of heads share it.

    `numbers` says which prompt of a larger batch each row is (default: its own number).
    """
    info = describe_model(model)
    hooks = [
        (z_hook_name(layer), _replacing(members, substitute, info, numbers))
        for layer, members in _by_layer(heads).items()
    ]
    with attach_hooks(model, hooks):
        yield


@contextmanager
def ablate_singly(
    model: Any, heads: Sequence[Head], substitute: Substitute, numbers: Int[Tensor, " prompt"]
) -> Iterator[None]:
    """Ablate each head of one layer on its own copy of the same prompts, in one batch of all.

    The batch that is run has all prompts once for each head, in this order; `numbers` are theirs.
    """
    own = torch.eye(len(heads), dtype=torch.bool).repeat_interleave(len(numbers), dim=0)
    info, copied = describe_model(model), numbers.repeat(len(heads))
    hook = _replacing(heads, substitute, info, copied, own[:, None, :, None])
    with attach_hooks(model, [(z_hook_name(heads[0].layer), hook)]):
        yield


def make_substitute(
    model: Any,
    heads: Sequence[Head],
    method: AblationMethod,
    reference: PromptsLike | None = None,
    seed: int = 0,
    n_tokens: int | None = None,
) -> Substitute:
    """What `method` puts in place of any of `heads`; the reference is run when it is needed.

    Resampling cuts the reference prompts to `n_tokens`, the length of every batch to come
    (`take_batch`); without it they must be of one length.
    """
    require_choice("method", method, get_args(AblationMethod))
    seed = read_seed(seed)
    if method == "zero":
        return lambda heads, z, numbers: z.new_zeros(1)
    if reference is None:
        raise ValueError(f"method {method!r} needs reference=, prompts to take outputs from")
    prompts = read_prompts(model, reference)
    if method == "mean":
        means = _mean_outputs(model, heads, prompts)
        return lambda heads, z, numbers: torch.stack([means[head] for head in heads]).to(z)
    if n_tokens is not None:
        prompts = _cut(prompts, n_tokens)
    elif int(prompts.lengths.min()) < prompts.n_tokens:
        raise ValueError(
            "method 'resample' needs reference prompts of one length, got prompts of "
            f"{prompts.lengths.unique().tolist()} tokens"
        )
    outputs = _outputs(model, heads, prompts)
    return lambda heads, z, numbers: _from_reference(heads, z, numbers, outputs, seed)


def take_batch(prompts: Prompts, rows: Int[Tensor, " some"], method: AblationMethod) -> Prompts:
    """Some of the prompts, padded to the longest of them.

    For resampling, which pairs positions with the reference's, to the longest of all.
    """
    if method == "resample":
        return Prompts(prompts.tokens[rows], prompts.lengths[rows])
    return prompts[rows]


def _cut(reference: Prompts, n_tokens: int) -> Prompts:
    """The first tokens of the reference prompts, as many as the longest scenario has."""
    shortest = int(reference.lengths.min())
    if shortest < n_tokens:
        raise ValueError(
            "method 'resample' takes outputs from the same position: the reference has a prompt of "
            f"{shortest} tokens, the longest scenario has {n_tokens}"
        )
    return reference.first_tokens(n_tokens)


def _by_layer(heads: Sequence[Head]) -> dict[int, list[Head]]:
    layers: dict[int, list[Head]] = {}
    for head in heads:
        layers.setdefault(head.layer, []).append(head)
    return layers


def _replacing(
    heads: Sequence[Head],
    substitute: Substitute,
    info: ModelInfo,
    numbers: Int[Tensor, " batch"] | None,
    mask: Bool[Tensor, "batch 1 chosen 1"] | None = None,
) -> Callable[..., Tensor]:
    """The hook of one layer. `mask` narrows `heads` down to each row's own; None is all."""
    columns = [head.head for head in heads]

    def replace(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> Tensor:
        if z.ndim != 4 or z.shape[2] != info.n_heads:
            raise ValueError(
                f"expected the head outputs of layer {heads[0].layer} as [batch, pos, "
                f"{info.n_heads} heads, d_head], got shape {tuple(z.shape)}"
            )
        rows = torch.arange(len(z)) if numbers is None else numbers
        new, replaced = substitute(heads, z, rows), z.clone()
        if mask is not None:
            new = torch.where(mask.to(z.device), new, z[:, :, columns])
        replaced[:, :, columns] = new
        return replaced

    return replace


def _from_reference(
    heads: Sequence[Head],
    z: Float[Tensor, "batch pos head d_head"],
    numbers: Int[Tensor, " batch"],
    outputs: Mapping[Head, Float[Tensor, "prompt pos d_head"]],
    seed: int,
) -> Float[Tensor, "batch pos chosen d_head"]:
    """The outputs of a reference prompt for each prompt, none twice while there are enough."""
    n_prompts, n_positions = outputs[heads[0]].shape[:2]
    if n_positions != z.shape[1]:
        raise ValueError(
            "method 'resample' takes outputs from the same position: the reference's prompts have "
            f"{n_positions} positions, this batch has {z.shape[1]}"
        )
    order = torch.randperm(n_prompts, generator=torch.Generator().manual_seed(seed))
    donors = order[numbers.cpu() % n_prompts].to(z.device)
    return torch.stack([outputs[head].to(z)[donors] for head in heads], dim=2)


def _mean_outputs(
    model: Any, heads: Sequence[Head], reference: Prompts
) -> dict[Head, Float[Tensor, " d_head"]]:
    """Each head's output averaged over prompts and positions, in float32."""
    sums: dict[Head, Tensor] = {}
    for prompts, outputs in _reference_outputs(model, heads, reference):
        for head, output in outputs.items():
            own = output[prompts.mask.to(output.device)]
            sums[head] = sums.get(head, 0) + own.float().sum(dim=0)
    return {head: total / int(reference.lengths.sum()) for head, total in sums.items()}


def _outputs(
    model: Any, heads: Sequence[Head], reference: Prompts
) -> dict[Head, Float[Tensor, "prompt pos d_head"]]:
    """Each head's output on every reference prompt."""
    batches = [outputs for _, outputs in _reference_outputs(model, heads, reference)]
    return {head: torch.cat([batch[head] for batch in batches]) for head in heads}


def _reference_outputs(
    model: Any, heads: Sequence[Head], reference: Prompts
) -> Iterator[tuple[Prompts, dict[Head, Float[Tensor, "prompt pos d_head"]]]]:
    """A few reference prompts at a time, and the heads' outputs on them."""
    if not heads:
        return
    by_layer = _by_layer(heads)

    def keeping(members: Sequence[Head], kept: dict[Head, Tensor]) -> Callable[..., None]:
        def keep(z: Float[Tensor, "batch pos head d_head"], hook: Any) -> None:
            kept.update({head: z[:, :, head.head].detach().clone() for head in members})

        return keep

    for prompts in reference.split(_REFERENCE_BATCH):
        kept: dict[Head, Tensor] = {}
        hooks = [(z_hook_name(layer), keeping(of, kept)) for layer, of in by_layer.items()]
        with torch.no_grad(), attach_hooks(model, hooks):
            run_until(model, prompts.tokens, max(by_layer))
        yield prompts, kept
