from __future__ import annotations

import math

import pytest
import torch
from mae_helpers import scaled_patches, softmax_patterns, tiny_config, tiny_mae
from torch.nn import functional as F

from aplens.heads import Head
from aplens.mae import APMAE, default_precision, random_masks
from aplens.patterns import AttentionPatterns, log_normalize

VARIANTS = [
    {},
    {"decoder_context": "cls"},
    {"patch_input": "centred"},
    {"patch_input": "centred", "base": "additive"},
    {"decoder_dim": 16},  # as wide as the encoder: nothing to project
]


def some_masks(mae, n, seed=0, n_patches=10):
    return random_masks(n, n_patches, 0.5, torch.Generator().manual_seed(seed))


# -- encoding


def encode_by_hand(mae, pattern):
    """CLS and patch tokens of one pattern, from the weights alone."""
    weights = mae.state_dict()
    config, p = mae.config, mae.config.patch_size

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + config.layer_norm_eps).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    log = pattern.log()
    smallest = log[log.isfinite()].min()
    scaled = torch.where(pattern > 0, (log - smallest) / -smallest, 0)
    positions = weights["encoder.positions"][0]
    tokens = [weights["encoder.cls_token"][0, 0] + positions[0]]
    for row in range(len(pattern) // p):
        for column in range(row + 1):
            patch = scaled[row * p : (row + 1) * p, column * p : (column + 1) * p].flatten()
            embedded = norm(patch, "encoder.patch_embedding.0")
            embedded = embedded @ weights["encoder.patch_embedding.1.weight"].T
            embedded = embedded + weights["encoder.patch_embedding.1.bias"]
            place = 1 + row * config.n_rows + column
            tokens.append(norm(embedded, "encoder.patch_embedding.2") + positions[place])
    x = torch.stack(tokens)
    for block in range(config.encoder_depth):
        name = f"encoder.transformer.blocks.{block}"
        q, k, v = (norm(x, f"{name}.norm1") @ weights[f"{name}.attn.qkv.weight"].T).chunk(3, -1)
        heads = []
        for head in range(config.encoder_heads):
            cut = slice(head * config.encoder_d_head, (head + 1) * config.encoder_d_head)
            scores = q[:, cut] @ k[:, cut].T / math.sqrt(config.encoder_d_head)
            heads.append(scores.softmax(-1) @ v[:, cut])
        out = torch.cat(heads, -1) @ weights[f"{name}.attn.proj.weight"].T
        x = x + out + weights[f"{name}.attn.proj.bias"]
        hidden = F.linear(
            norm(x, f"{name}.norm2"),
            weights[f"{name}.mlp.fc1.weight"],
            weights[f"{name}.mlp.fc1.bias"],
        )
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + F.linear(hidden, weights[f"{name}.mlp.fc2.weight"], weights[f"{name}.mlp.fc2.bias"])
    return norm(x, "encoder.transformer.norm")


@pytest.mark.parametrize("n_tokens", [16, 8])
def test_encoding_equals_a_computation_by_hand(n_tokens):
    mae = tiny_mae()
    pattern = softmax_patterns(n_tokens=n_tokens)
    tokens = encode_by_hand(mae, pattern)
    n_rows = n_tokens // 4
    expected = torch.cat([tokens[0], tokens[-n_rows:].mean(0), tokens.mean(0)])
    pools = ("cls", "last_query", "mean")
    embedding = mae.encode(pattern, pool=pools, precision=torch.float32)
    assert torch.allclose(embedding, expected, atol=1e-5)


def test_a_centred_patch_keeps_its_level_where_layer_norm_loses_it():
    patches = scaled_patches(tiny_mae(), 3)
    brighter = patches.clone()
    brighter[:, [1, 3, 4, 6, 7, 8]] += 0.2  # all but those on the diagonal
    normed, centred = tiny_mae(), tiny_mae(patch_input="centred")
    assert torch.allclose(
        normed.encode_patches(patches), normed.encode_patches(brighter), atol=1e-3
    )
    assert (centred.encode_patches(patches) - centred.encode_patches(brighter)).abs().max() > 0.1


def test_encode_keeps_the_batch_and_head_dimensions():
    mae = tiny_mae()
    attention = softmax_patterns(2, 3)
    patterns = AttentionPatterns(attention, (Head(0, 0), Head(0, 1), Head(1, 0)))
    embeddings = mae.encode(patterns)
    assert embeddings.shape == (2, 3, mae.embedding_size()) == (2, 3, 32)
    assert embeddings.dtype == torch.float32
    assert torch.equal(embeddings, mae.encode(attention))
    assert torch.allclose(embeddings[1, 2], mae.encode(attention[1, 2]), atol=1e-5)
    assert torch.allclose(
        embeddings, torch.stack([mae.encode(pattern) for pattern in attention]), atol=1e-5
    )
    assert mae.encode(attention[:0]).shape == (0, 3, 32)


def test_pools_are_concatenated_in_the_order_asked_for():
    mae, attention = tiny_mae(), softmax_patterns(2)
    cls, last = mae.encode(attention, pool="cls"), mae.encode(attention, pool="last_query")
    assert torch.equal(
        mae.encode(attention, pool=("last_query", "cls")), torch.cat([last, cls], -1)
    )
    assert torch.equal(mae.encode(attention), torch.cat([cls, last], -1))


def test_a_prompt_within_one_patch_can_be_encoded():
    embedding = tiny_mae().encode(softmax_patterns(2, n_tokens=3))
    assert embedding.shape == (2, 32)
    assert embedding.isfinite().all()


def test_encoding_is_of_the_pattern_not_of_its_neighbours():
    mae, attention = tiny_mae(), softmax_patterns(5)
    assert torch.allclose(mae.encode(attention)[3], mae.encode(attention[3:4])[0], atol=1e-5)


def test_all_patches_include_those_above_the_diagonal_but_means_do_not():
    mae, attention = tiny_mae(), softmax_patterns(2)
    seen = []
    hook = mae.encoder.transformer.register_forward_hook(lambda *call: seen.append(call[2]))
    pooled = mae.encode(attention, patches="all", pool=("cls", "mean", "last_query"))
    hook.remove()
    (tokens,) = seen
    assert tokens.shape == (2, 1 + 16, 16)
    lower = [0, *(1 + 4 * row + column for row in range(4) for column in range(row + 1))]
    expected = [tokens[:, 0], tokens[:, lower].mean(1), tokens[:, -4:].mean(1)]
    assert torch.allclose(pooled, torch.cat(expected, -1), atol=1e-5)
    assert not torch.allclose(pooled, mae.encode(attention, pool=("cls", "mean", "last_query")))


def test_all_patches_of_a_shorter_prompt_keep_their_places():
    mae, attention = tiny_mae(), softmax_patterns(2, n_tokens=8)
    seen = []
    hook = mae.encoder.register_forward_hook(lambda *call: seen.append(call[1][1]))
    mae.encode(attention, patches="all")
    hook.remove()
    assert seen[0].tolist() == [0, 1, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patterns": softmax_patterns(1, n_tokens=17)}, "17 tokens do not fit, expected 1 to 16"),
        ({"patterns": torch.zeros(2, 3, 4)}, r"square patterns .* got shape \(2, 3, 4\)"),
        ({"patterns": [[1.0]]}, "got list"),
        ({"patterns": torch.full((4, 4), torch.nan)}, "NaN"),
        ({"pool": "max"}, r"pool must be one or more of .* got 'max'"),
        ({"pool": ()}, "pool must be one or more"),
        ({"patches": "upper"}, r"patches must be one of \['lower', 'all'\], got 'upper'"),
        ({"precision": torch.float64}, "precision must be .* got torch.float64"),
    ],
)
def test_encode_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_mae().encode(**({"patterns": softmax_patterns(1)} | arguments))


@pytest.mark.parametrize("shape", [(2, 7, 16), (2, 10, 15), (10, 16), (2, 15, 16)])
def test_patches_of_no_prompt_length_are_refused(shape):
    with pytest.raises(ValueError, match=r"among \[1, 3, 6, 10\], got"):
        tiny_mae().encode_patches(torch.zeros(shape))


# -- masking, decoding, reconstructing


@pytest.mark.parametrize("changes", VARIANTS)
def test_hidden_patches_change_the_loss_and_nothing_else(changes):
    mae = tiny_mae(**changes)
    patches = scaled_patches(mae, 4)
    mask = some_masks(mae, 4)
    other = torch.where(mask[..., None], torch.rand_like(patches), patches)
    first, second = mae(patches, mask=mask), mae(other, mask=mask)
    assert torch.equal(first.predicted, second.predicted)
    assert first.loss != second.loss


@pytest.mark.parametrize("changes", VARIANTS)
def test_loss_is_the_error_on_hidden_patches_alone(changes):
    mae = tiny_mae(**changes)
    patches = scaled_patches(mae, 4)
    output = mae(patches, some_masks(mae, 4, seed=1))
    hidden = patches[output.mask].reshape(4, 5, 16)
    assert output.mask.sum(dim=1).tolist() == [5] * 4
    assert torch.allclose(output.loss, ((output.predicted - hidden) ** 2).mean())


@pytest.mark.parametrize("changes", VARIANTS)
def test_visible_patches_matter(changes):
    mae = tiny_mae(**changes)
    patches, mask = scaled_patches(mae, 4), some_masks(mae, 4)
    other = torch.where(mask[..., None], patches, scaled_patches(mae, 4, seed=5))
    assert not torch.allclose(mae(patches, mask=mask).predicted, mae(other, mask=mask).predicted)


@pytest.mark.parametrize("context", ["tokens", "cls"])
def test_only_the_tokens_context_reads_visible_tokens(context):
    mae = tiny_mae(decoder_context=context)
    patches, mask = scaled_patches(mae, 3), some_masks(mae, 3)
    before = mae(patches, mask=mask).predicted
    noise = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(0))
    noise[:, 0] = 0  # CLS stays
    hook = mae.encoder.register_forward_hook(lambda module, inputs, output: output + noise)
    after = mae(patches, mask=mask).predicted
    hook.remove()
    assert torch.equal(before, after) == (context == "cls")


def test_cls_context_decodes_the_whole_grid_as_the_released_code_does():
    mae = tiny_mae(decoder_context="cls")
    patches, mask = scaled_patches(mae, 1), some_masks(mae, 1)
    seen = []
    hook = mae.decoder.transformer.register_forward_pre_hook(lambda *call: seen.append(call[1][0]))
    mae(patches, mask=mask, precision=torch.float32)
    hook.remove()
    content = seen[0][0] - mae.decoder.positions[0]
    assert content.shape == (1 + 16, 12)
    places = [4 * row + column for row in range(4) for column in range(row + 1)]
    visible = {place for place, hidden in zip(places, mask[0].tolist(), strict=True) if not hidden}
    for place in range(16):
        expected = mae.decoder.mask_token if place in visible else torch.zeros(12)
        assert torch.allclose(content[1 + place], expected, atol=1e-6)


def test_an_untrained_additive_decoder_predicts_the_fit():
    from aplens.mae import additive_fit

    mae = APMAE(tiny_config(base="additive"))
    patches = scaled_patches(mae, 4)
    mae.mean_patches.copy_(patches.mean(0))
    mask = some_masks(mae, 4)
    fit = additive_fit(patches, mask, mae.mean_patches, mae.grid)
    assert torch.allclose(mae.fill_in(patches, mask)[mask], fit[mask], atol=1e-6)


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("n_tokens", [16, 10])
def test_reconstruction(changes, n_tokens):
    mae = tiny_mae(**changes)
    attention = softmax_patterns(2, 3, n_tokens=n_tokens)
    result = mae.reconstruct(attention, seed=4)
    k = mae.grid.n_patches_for(n_tokens)
    assert result.mask.shape == (2, 3, k)
    assert (result.mask.sum(-1) == k // 2).all()
    assert torch.allclose(result.original, log_normalize(attention), atol=1e-6)
    hidden = result.masked.isnan()
    assert torch.equal(result.masked[~hidden], result.original[~hidden])
    assert torch.equal(result.reconstructed[~hidden], result.original[~hidden])
    squared = (result.reconstructed - result.original) ** 2
    for i in range(2):
        for j in range(3):
            blank = mae.grid.unpatchify(
                result.mask[i, j, :, None].expand(-1, 16).float(), n_tokens
            ).bool()
            assert torch.equal(hidden[i, j], blank)
            assert torch.allclose(result.error[i, j], squared[i, j][blank].mean())
    same, other = mae.reconstruct(attention, seed=4), mae.reconstruct(attention, seed=5)
    assert torch.equal(result.reconstructed, same.reconstructed)
    assert not torch.equal(result.mask, other.mask)


def test_reconstruct_with_another_ratio():
    mae, attention = tiny_mae(), softmax_patterns(5)
    result = mae.reconstruct(attention, mask_ratio=0.8)
    assert (result.mask.sum(-1) == 8).all()


def test_a_prompt_within_one_patch_cannot_be_reconstructed():
    with pytest.raises(ValueError, match="fits in one patch"):
        tiny_mae().reconstruct(softmax_patterns(n_tokens=4))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(2, 10, dtype=torch.bool), "between 0 and 0"),
        (torch.ones(2, 10, dtype=torch.bool), "not all 10"),
        (torch.eye(10, dtype=torch.bool).cumsum(0)[:2].bool(), "between 1 and 2"),
        (torch.zeros(2, 9, dtype=torch.bool), r"boolean mask of shape \(2, 10\)"),
        (torch.zeros(2, 10), "boolean mask"),
    ],
)
def test_impossible_masks_are_refused(mask, message):
    with pytest.raises(ValueError, match=message):
        tiny_mae()(torch.rand(2, 10, 16), mask=mask)


# -- training, seeds, precision


@pytest.mark.parametrize("changes", VARIANTS)
def test_every_weight_gets_a_gradient(changes):
    mae = tiny_mae(**changes)
    mae(scaled_patches(mae, 4), some_masks(mae, 4)).loss.backward()
    idle = [name for name, weight in mae.named_parameters() if weight.grad is None]
    assert idle == []


def structured_patches(mae, n, seed):
    """Heads that attend to the first token, the previous one, or all; any visible patch tells."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.zeros(3, 16, 16)
    scores[0, :, 0] = 6
    scores[1].diagonal(-1).fill_(6)
    kind = torch.randint(0, 3, (n,), generator=generator)
    scores = scores[kind] + 0.3 * torch.randn(n, 16, 16, generator=generator)
    above = torch.ones(16, 16, dtype=torch.bool).triu(1)
    attention = scores.masked_fill(above, -torch.inf).softmax(-1)
    return log_normalize(mae.grid.patchify(attention))


@pytest.mark.parametrize("changes", [{}, {"decoder_context": "cls"}, {"base": "additive"}])
def test_training_learns_what_the_mean_patch_cannot_know(changes):
    mae = APMAE(tiny_config(**changes))
    train, test = structured_patches(mae, 512, seed=1), structured_patches(mae, 64, seed=2)
    if mae.mean_patches is not None:
        mae.mean_patches.copy_(train.mean(0))
    mask = some_masks(mae, 64)
    mean_patch = (test - train.mean(0))[mask].square().mean()
    before = mae(test, mask=mask).loss
    optimizer = torch.optim.AdamW(mae.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        batch = train[torch.randint(0, 512, (64,), generator=generator)]
        loss = mae(batch, random_masks(64, 10, 0.5, generator)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = mae(test, mask=mask).loss
    assert after < 0.6 * mean_patch
    assert after < 0.5 * before  # also where training starts at the additive fit


def test_a_seed_decides_the_weights_and_the_global_state_stays():
    torch.manual_seed(123)
    before = torch.get_rng_state()
    first, second, other = (APMAE(tiny_config(), seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    tiny_mae().reconstruct(softmax_patterns(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_default_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for native, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert default_precision(cpu) == expected


@pytest.mark.parametrize("changes", VARIANTS)
def test_bfloat16_agrees_with_float32(changes):
    mae, attention = tiny_mae(**changes), softmax_patterns(8)
    exact = mae.encode(attention, precision=torch.float32)
    rough = mae.encode(attention, precision=torch.bfloat16)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert F.cosine_similarity(rough, exact, dim=-1).min() > 0.99
    scaled = scaled_patches(mae, 8)
    mask = random_masks(8, scaled.shape[1], 0.5, torch.Generator().manual_seed(0))
    errors = [
        (mae.fill_in(scaled, mask, precision=precision) - scaled)[mask].square().mean()
        for precision in (torch.bfloat16, torch.float32)
    ]
    assert torch.allclose(*errors, rtol=0.05)


@pytest.mark.parametrize("base", ["none", "low_rank"])
def test_padding_is_predicted_empty_and_counts_for_nothing(base):
    mae = tiny_mae(base=base, patch_input="centred")
    patches = scaled_patches(mae, 6, n_tokens=13)  # the last row of patches holds one token
    mask = torch.zeros(6, 10, dtype=torch.bool)
    mask[:, 6:9] = True
    output = mae(patches, mask=mask, n_tokens=13)
    predicted = output.predicted.unflatten(-1, (4, 4))
    assert not predicted[:, :, 1:].any()
    assert predicted[:, :, 0].any()
    actual = patches[:, 6:9].unflatten(-1, (4, 4))[:, :, 0]
    expected = (predicted[:, :, 0] - actual).square().mean()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_length_that_the_patches_do_not_have_is_refused():
    mae = tiny_mae()
    patches = scaled_patches(mae, 2)
    with pytest.raises(ValueError, match="10 patches of 4 are not those of 12 tokens"):
        mae.encode_patches(patches, n_tokens=12)


def test_cls_learns_to_tell_the_pattern_only_when_asked():
    assert tiny_mae().summary is None
    mae = tiny_mae(summary_weight=0.4, patch_input="centred")
    patches = scaled_patches(mae, 8)
    output = mae(patches, some_masks(mae, 8))
    assert output.summary_loss > 0
    output.summary_loss.backward()
    assert mae.encoder.cls_token.grad.abs().sum() > 0
    assert mae.decoder.to_pixels.weight.grad is None


def test_the_summary_is_of_cells_and_of_the_last_query():
    mae = tiny_mae(summary_weight=1.0, patch_input="centred")
    patches = scaled_patches(mae, 5, n_tokens=14)  # its last token is the second of its patch
    with torch.no_grad():
        for layer in (mae.summary.cells, mae.summary.last_query):
            layer.weight.zero_()
            layer.bias.zero_()
        loss = mae(patches, some_masks(mae, 5), n_tokens=14).summary_loss
        inside = mae.grid.patchify(torch.ones(14, 14))
        deviation = (patches - mae.mean_patches * inside).unflatten(-1, (4, 4))
    expected = deviation.square().mean() + deviation[:, 6:, 1].square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)  # cells of one pixel each
