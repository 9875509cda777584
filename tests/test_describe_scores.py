"""Head scores need no answers, and say of a head what its patterns show."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from mae_helpers import tiny_mae

import aplens
from aplens import APMAE, collect_patterns, parse_heads
from aplens.describe.reading import choose_mae
from aplens.describe.scores import score_heads
from aplens.mae import random_masks
from aplens.mae.rounds import seeded
from aplens.patterns import log_normalize
from aplens.patterns.templates import DETECTED, MIXED, TEMPLATES, name_templates, template_scores

COLUMNS = ["layer", "head", "error", "relative_error", "variation", "template", "template_share"]


@pytest.fixture(scope="module")
def mae():
    return tiny_mae()  # up to 16 tokens, patches of 4


def random_prompts(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 101, (n,), generator=generator).tolist() for n in lengths]


def test_one_row_a_head_by_layer_and_head(tiny_model, mae):
    frame = score_heads(tiny_model, random_prompts(16, 13, 16), mae=mae)
    assert list(frame.columns) == [*COLUMNS, *TEMPLATES]
    assert frame.index.name == "name"
    assert list(frame.index) == [f"L{layer}H{head}" for layer in range(3) for head in range(4)]
    numbers = frame.drop(columns="template").to_numpy(float)
    assert np.isfinite(numbers).all()
    assert (numbers >= 0).all()
    assert (frame["variation"] > 0).all()
    assert set(frame["template"]) <= {*TEMPLATES, MIXED}
    chosen = score_heads(tiny_model, random_prompts(16, 13, 16), mae=mae, heads="L2H1, L0H3")
    assert list(chosen.index) == ["L0H3", "L2H1"]
    pd.testing.assert_frame_equal(chosen, frame.loc[chosen.index], rtol=1e-4)


def test_scores_do_not_depend_on_batches(any_model, mae):
    prompts = random_prompts(16, 9, 12, 16, 5)
    exact = {"mae": mae, "precision": torch.float32}
    seen = []
    frame = score_heads(
        any_model, prompts, **exact, batch_size=2, progress=lambda *done: seen.append(done)
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    one_by_one = score_heads(any_model, prompts, **exact, batch_size=1)
    pd.testing.assert_frame_equal(frame, one_by_one, rtol=1e-3, atol=1e-6)
    rough = score_heads(any_model, prompts, mae=mae, precision=torch.bfloat16)
    pd.testing.assert_frame_equal(frame, rough, rtol=0.03, atol=1e-3)
    assert not np.array_equal(frame["error"], rough["error"])


def test_the_error_is_that_on_the_hidden_part_with_one_mask_for_all_heads(any_model):
    mae = tiny_mae(base="additive")
    (prompt,) = random_prompts(14)
    frame = score_heads(any_model, prompt, mae=mae)
    pattern = collect_patterns(any_model, prompt)["L1H2"]
    scaled = log_normalize(mae.grid.patchify(pattern))
    mask = random_masks(1, scaled.shape[1], mae.config.mask_ratio, seeded(0, 0))
    filled = mae.grid.unpatchify(mae.fill_in(scaled, mask, n_tokens=14), 14)
    nothing = mae.grid.unpatchify(scaled.masked_fill(mask[..., None], torch.nan), 14)
    hidden = nothing.isnan()
    scaled = log_normalize(pattern)
    error = (filled - scaled)[hidden].square().mean()
    mean = mae.grid.unpatchify(mae.mean_pattern(14), 14)[None]
    reference = (mean - scaled)[hidden].square().mean()
    assert frame.loc["L1H2", "relative_error"] == pytest.approx(
        (error / reference).item(), rel=1e-4
    )


def test_without_a_mean_pattern_the_reference_is_each_patterns_own_mean(any_model):
    mae = tiny_mae(base="none", patch_input="layer_norm")
    assert mae.mean_pattern(16) is None
    (prompt,) = random_prompts(16)
    frame = score_heads(any_model, prompt, mae=mae)
    scaled = log_normalize(collect_patterns(any_model, prompt)["L1H2"])[0]
    mask = random_masks(1, 10, mae.config.mask_ratio, seeded(0, 0))
    hidden = mae.grid.unpatchify(mask[0, :, None].expand(-1, 16).float()).bool()
    below = torch.ones(16, 16).tril().bool()
    guess = scaled[below].mean() * below
    reference = (guess - scaled)[hidden].square().mean()
    row = frame.loc["L1H2"]
    assert row["error"] / row["relative_error"] == pytest.approx(reference.item(), rel=1e-4)


def test_the_same_prompt_again_has_no_variation(any_model, mae):
    (prompt,) = random_prompts(16)
    same = score_heads(any_model, [prompt] * 3, mae=mae)
    np.testing.assert_allclose(same["variation"], 0, atol=1e-5)
    assert score_heads(any_model, prompt, mae=mae)["variation"].isna().all()


def test_variation_is_the_mean_cosine_distance_at_the_middle_prompts_length(
    any_model, mae, monkeypatch
):
    # Padding changes the last digits of what the encoder reads, and bfloat16 would make them large.
    monkeypatch.setattr("aplens.mae.precision.default_precision", lambda device: torch.float32)
    prompts = random_prompts(4, 12, 16, 12, 15)
    with pytest.warns(UserWarning, match="1 of 5 prompts have at most 4 tokens"):
        frame = score_heads(any_model, prompts, mae=mae)
    cut = [prompt[:12] for prompt in prompts[1:]]
    embeddings = mae.encode(collect_patterns(any_model, cut)).double()
    unit = embeddings / embeddings.norm(dim=-1, keepdim=True)
    cosine = torch.cosine_similarity(unit, unit.mean(0, keepdim=True), dim=-1)
    np.testing.assert_allclose(frame["variation"], 1 - cosine.mean(0), atol=1e-5)


def test_template_columns_are_averages_over_prompts(any_model, mae):
    prompts = [prompt * 2 for prompt in random_prompts(8, 7, 6)]
    frame = score_heads(any_model, prompts, mae=mae)
    patterns = collect_patterns(any_model, prompts)
    scores, names = [], []
    for i, prompt in enumerate(prompts):
        tokens = torch.tensor(prompt)
        scores.append(template_scores(patterns.prompt(i), tokens))
        names.append(name_templates(scores[-1], tokens))
    np.testing.assert_allclose(frame[list(TEMPLATES)], torch.stack(scores).mean(0), atol=1e-5)
    for row, given in zip(frame.itertuples(), np.stack(names, axis=1), strict=True):
        counts = pd.Series(given).value_counts()
        assert counts[row.template] == counts.max()
        assert row.template_share == pytest.approx(counts.max() / 3)


def test_long_prompts_are_scored_on_their_first_tokens(any_model, mae):
    prompts = random_prompts(30, 20)
    with pytest.warns(UserWarning, match="2 of 2 prompts are longer .* first 16 tokens") as caught:
        frame = score_heads(any_model, prompts, mae=mae)
    assert [warning.filename for warning in caught] == [__file__]
    cut = score_heads(any_model, [prompt[:16] for prompt in prompts], mae=mae)
    pd.testing.assert_frame_equal(frame, cut)


def test_prompts_of_four_tokens_have_no_error_but_everything_else(any_model, mae):
    with pytest.warns(UserWarning, match="2 of 2 prompts have at most 4 tokens, one patch"):
        frame = score_heads(any_model, random_prompts(4, 4), mae=mae)
    assert frame[["error", "relative_error"]].isna().all(axis=None)
    assert (frame["variation"] > 0).all()
    assert frame[list(TEMPLATES)].notna().all(axis=None)


def test_fitting_prompts_raise_no_warning(any_model, mae):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score_heads(any_model, random_prompts(16, 5), mae=mae)


# Which AP-MAE reads them


@pytest.mark.parametrize(
    ("lengths", "name"),
    [((3, 64), "aplens-short"), ((64, 64, 200), "aplens-short"), ((9, 65, 65), "aplens-base")],
)
def test_the_bundled_ap_mae_that_fits_the_middle_prompt_is_taken(lengths, name):
    chosen = choose_mae("auto", torch.tensor(lengths))
    assert chosen.config == APMAE.from_pretrained(name).config
    assert chosen.config.n_ctx >= sorted(lengths)[(len(lengths) - 1) // 2]


def test_every_call_that_reads_patterns_takes_an_ap_mae_by_name_and_chooses_one(any_model):
    prompts, short = random_prompts(20, 20), APMAE.from_pretrained("aplens-short")
    calls = {
        "score": lambda **mae: score_heads(any_model, prompts, heads="L0H1", **mae).to_numpy(),
        "describe": lambda **mae: [
            card.surprise for card in aplens.describe_heads(any_model, prompts, "L0H1", **mae)
        ],
        "map": lambda **mae: aplens.map_heads(any_model, prompts, **mae).directions.numpy(),
        "show": lambda **mae: aplens.show_heads(any_model, prompts[0], "L0H1", **mae).html,
    }
    for name, call in calls.items():
        expected = call(mae=short)
        for given in ({"mae": "aplens-short"}, {"mae": "auto"}, {}):
            if given or name != "show":  # which shows no habit unless asked to
                assert np.array_equal(call(**given), expected), (name, given)
        with pytest.raises(TypeError, match=r"mae must be an APMAE, 'auto', .*got 5"):
            call(mae=5)
        with pytest.raises(aplens.mae.CheckpointError, match="no AP-MAE 'aplens-shrt'"):
            call(mae="aplens-shrt")


def test_a_head_that_is_not_there_is_refused(any_model, mae):
    with pytest.raises(ValueError, match="layer 9"):
        score_heads(any_model, random_prompts(16), mae=mae, heads="L9H0")


@pytest.mark.real
@pytest.mark.parametrize("kind", ["hooked", "bridge"])
def test_real_heads_are_named_and_the_previous_token_heads_vary_least(kind, request):
    model = request.getfixturevalue(f"smollm2_{kind}")
    texts = [
        "The harbour lay quiet that morning, and only the gulls and the bell of the old ferry",
        "public int size() {\n    return count;\n}\n\npublic boolean isEmpty() {\n    return count",
    ]
    layers = parse_heads({layer: range(9) for layer in (10, 11, 16)})
    mae = APMAE.from_pretrained("aplens-short")
    frame = score_heads(model, texts, mae=mae, heads=layers)
    assert (frame["relative_error"] < 1).all()  # better than the mean pattern, for every head
    named = frame.index[frame["template"] == DETECTED[0]]
    assert {"L16H0", "L11H1"} <= set(named)
    assert frame["variation"].rank()[named].max() <= 5
