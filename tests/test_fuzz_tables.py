"""Scenarios in Parquet and weights in safetensors, damaged and altered: read right, or refused."""

from __future__ import annotations

import io
import json
import pickle
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuzz_helpers import damaged, dump, fuzz, is_clear, json_values, mutations, refusal_of
from hypothesis import example, given
from hypothesis import strategies as st
from mae_helpers import TINY, tiny_mae
from safetensors.torch import load_file, save

from aplens._io import fingerprint
from aplens.mae import APMAE, CheckpointError
from aplens.mae.checkpoints import STATE_FILE, TrainingState, load_checkpoint, save_checkpoint
from aplens.mae.pretrained import _load_config
from aplens.scenarios import Scenario, ScenarioError, Scenarios
from aplens.scenarios.scenario import _schema

SCENARIOS = Scenarios(
    Scenario(
        task="eol" if i % 2 else "random",
        language="python",
        file=f"p/f{i // 3}.py",
        line=i + 1,
        span="é\n" * i,
        prompt=tuple(range(i, i + 12)),
        target=i,
        style="left_to_right",
        wrong=None if i % 3 else i + 1,
    )
    for i in range(40)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


# --- scenarios ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parquet(folder) -> bytes:
    SCENARIOS.save(folder / "good.parquet")
    return (folder / "good.parquet").read_bytes()


def read_scenarios(data: bytes, folder) -> Scenarios | None:
    path = folder / "changed.parquet"
    path.write_bytes(data)
    refusal = refusal_of(ScenarioError, Scenarios.load, path)
    if refusal is not None:
        assert is_clear(refusal, path)
        return None
    return Scenarios.load(path)


@fuzz(250)
@given(data=st.data())
def test_damaged_scenarios_are_never_read_wrong(parquet, folder, data):
    read = read_scenarios(data.draw(damaged(parquet)), folder)
    # What no checksum covers are the headers: a damaged one must not change a value unseen.
    assert read is None or read == SCENARIOS


def test_scenarios_truncated_anywhere(parquet, folder):
    for end in range(0, len(parquet), 37):
        assert read_scenarios(parquet[:end], folder) is None


@fuzz(50)
@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"PAR1" + data + b"PAR1"))
@example(b"")
@example(b"PAR1" + struct.pack("<I", 2**31 - 1) + b"PAR1")
def test_what_is_no_parquet_file(folder, data):
    assert read_scenarios(data, folder) is None


def rewritten(schema=None, **columns) -> bytes:
    """The scenarios' table with other columns."""
    schema = schema or _schema()
    rows = {name: [getattr(scenario, name) for scenario in SCENARIOS] for name in schema.names}
    sink = io.BytesIO()
    pq.write_table(pa.table({**rows, **columns}, schema=schema), sink)
    return sink.getvalue()


def test_a_table_written_without_checksums_is_read(folder):
    assert read_scenarios(rewritten(), folder) == SCENARIOS


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": [[1, None]] * 40}, "no token ids"),
        ({"prompt": [[]] * 40}, "no prompt"),
        ({"prompt": [[-1]] * 40}, "no token ids"),
        ({"target": [-5] * 40}, "no token ids"),
        ({"wrong": [-5] * 40}, "no token ids"),
        ({"line": [0] * 40}, "line"),
        ({"style": ["poem"] * 40}, "style must be one of"),
    ],
)
def test_values_that_no_scenario_has(folder, columns, words):
    path = folder / "values.parquet"
    path.write_bytes(rewritten(**columns))
    with pytest.raises(ScenarioError, match=words) as caught:
        Scenarios.load(path)
    assert is_clear(caught.value, path)


@pytest.mark.parametrize(
    "metadata", [None, {b"format": b"\xff"}, {b"format": b"aplens.scenarios", b"version": b"\xff"}]
)
def test_metadata_of_another_file(folder, metadata):
    assert read_scenarios(rewritten(_schema().with_metadata(metadata)), folder) is None


def test_nulls_where_there_is_none(folder):
    schema = pa.schema([field.with_nullable(True) for field in _schema()], _schema().metadata)
    assert read_scenarios(rewritten(schema, task=[None] * 40), folder) is None


def test_an_empty_table_is_no_scenarios(folder):
    Scenarios(()).save(folder / "empty.parquet")
    assert Scenarios.load(folder / "empty.parquet") == Scenarios(())


# --- weights -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mae_folder(folder):
    tiny_mae().save_pretrained(folder / "mae")
    return folder / "mae"


@pytest.fixture(scope="module")
def good_weights(mae_folder) -> bytes:
    return (mae_folder / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def good_config(mae_folder) -> dict:
    return json.loads((mae_folder / "config.json").read_text())


def read_mae(folder, weights: bytes, config: bytes) -> APMAE | None:
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "config.json").write_bytes(config)
    found: list[APMAE] = []
    refusal = refusal_of(CheckpointError, lambda: found.append(APMAE.from_pretrained(folder)))
    assert refusal is None or is_clear(refusal, folder)
    return found[0] if found else None


@fuzz(100)
@given(data=st.data())
def test_damaged_weights(mae_folder, good_weights, good_config, data):
    mae = read_mae(mae_folder, data.draw(damaged(good_weights)), dump(good_config))
    assert mae is None or all(torch.isfinite(value).all() for value in mae.state_dict().values())


def with_header(header: bytes, rest: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if size is None else size) + header + rest


@fuzz(150)
@given(data=st.data())
@example(data=None)
def test_weights_with_a_lying_header(mae_folder, good_weights, good_config, data):
    size = struct.unpack("<Q", good_weights[:8])[0]
    header, rest = json.loads(good_weights[8 : 8 + size]), good_weights[8 + size :]
    if data is None:
        header["encoder.cls_token"] |= {"shape": [2**40, 2**40], "data_offsets": [0, 2**62]}
        changed = header
    else:
        changed = data.draw(mutations(header))
    read_mae(mae_folder, with_header(dump(changed), rest), dump(good_config))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 8,
        with_header(b"", size=2**62),
        with_header(b"{}", size=99_000_000),
        with_header(b"[]"),
        with_header(b"{}"),
        with_header(b"\xff\xfe"),
        with_header(b"[" * 50_000),
        pickle.dumps({"encoder.cls_token": [1.0]}),
    ],
)
def test_what_is_no_safetensors_file(mae_folder, good_config, data):
    assert read_mae(mae_folder, data, dump(good_config)) is None


@pytest.mark.parametrize(
    "dtype",
    [torch.int32, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn],
    ids=str,
)
def test_weights_of_another_type(mae_folder, good_weights, good_config, dtype):
    (mae_folder / "model.safetensors").write_bytes(good_weights)
    weights = load_file(mae_folder / "model.safetensors")
    weights["encoder.cls_token"] = torch.ones_like(weights["encoder.cls_token"]).to(dtype)
    with pytest.raises(CheckpointError, match=r"of the wrong type: encoder\.cls_token"):
        read_weights(mae_folder, weights, good_config)


def read_weights(folder, weights, config):
    (folder / "model.safetensors").write_bytes(save(weights))
    (folder / "config.json").write_bytes(dump(config))
    return APMAE.from_pretrained(folder)


def test_a_double_that_no_float_can_hold_is_refused(mae_folder, good_weights, good_config):
    (mae_folder / "model.safetensors").write_bytes(good_weights)
    weights = load_file(mae_folder / "model.safetensors")
    shape = weights["encoder.cls_token"].shape
    weights["encoder.cls_token"] = torch.full(shape, 1e300, dtype=torch.float64)
    with pytest.raises(CheckpointError, match="not finite"):
        read_weights(mae_folder, weights, good_config)


# --- configurations ----------------------------------------------------------------------------


def read_configuration(folder, data: bytes) -> None:
    """Without building the AP-MAE that it describes."""
    path = folder / "config.json"
    path.write_bytes(data)
    refusal = refusal_of(CheckpointError, _load_config, path)
    assert refusal is None or is_clear(refusal, path)


@fuzz(200)
@given(data=st.data())
def test_a_configuration_with_one_wrong_value(mae_folder, good_config, data):
    read_configuration(mae_folder, dump(data.draw(mutations(good_config))))


@fuzz(60)
@given(data=json_values.map(dump) | st.binary(max_size=40))
@example(data=b"[" * 100_000)
@example(data=b'{"model_type": "aplens_apmae", "n_ctx": ' + b"[" * 900 + b"]" * 900 + b"}")
def test_what_is_no_configuration(mae_folder, data):
    read_configuration(mae_folder, data)


@pytest.mark.parametrize(
    "key",
    ["fingerprint_dim", *(key for key in TINY if key not in ("patch_size", "mask_ratio"))],
)
@pytest.mark.parametrize("value", [2**14, 2**31, 2**80])
def test_sizes_that_the_weights_cannot_have_are_not_built(
    mae_folder, good_weights, good_config, key, value
):
    (mae_folder / "model.safetensors").write_bytes(good_weights)
    (mae_folder / "config.json").write_bytes(dump(good_config | {key: value}))
    with pytest.raises(CheckpointError, match=r"config\.json describes a model of \d+ .*has \d+"):
        APMAE.from_pretrained(mae_folder)


@pytest.mark.parametrize(
    "key", ["layer_norm_eps", "mask_ratio", "summary_weight", "fingerprint_dim"]
)
def test_a_number_that_no_float_can_hold(mae_folder, good_weights, good_config, key):
    assert read_mae(mae_folder, good_weights, dump(good_config | {key: 10**400})) is None


# --- training checkpoints ----------------------------------------------------------------------

ENTRY = {
    "patterns": 4,
    "seconds": 1.0,
    "learning_rate": 0.001,
    "loss": None,
    "validation_mse": 0.5,
    "validation_ratio": 1.0,
    "retrieval": None,
}
IDENTITY = {"config": {"n_ctx": 16}, "settings": {"seed": 0}, "prompts": "0f"}
STATE = TrainingState(
    batch=1, step=1, patterns=4, variance=0.1, mean_patch_mse=0.5, history=[ENTRY, ENTRY]
)


def trained():
    mae = tiny_mae()
    optimizer = torch.optim.AdamW(mae.parameters())
    sum(parameter.square().sum() for parameter in mae.parameters()).backward()
    optimizer.step()
    return mae, optimizer


@pytest.fixture(scope="module")
def checkpoint(folder) -> bytes:
    save_checkpoint(folder, *trained(), STATE, IDENTITY)
    return (folder / STATE_FILE).read_bytes()


def resume(folder, data: bytes) -> TrainingState | None:
    """The state, if the checkpoint is taken; the optimizer then has to work."""
    (folder / STATE_FILE).write_bytes(data)
    mae = tiny_mae(seed=1)
    optimizer = torch.optim.AdamW(mae.parameters())
    state = load_checkpoint(folder, mae, optimizer, IDENTITY)
    sum(parameter.square().sum() for parameter in mae.parameters()).backward()
    optimizer.step()
    return state


def read_checkpoint(folder, data: bytes) -> None:
    refusal = refusal_of(CheckpointError, resume, folder, data)
    assert refusal is None or is_clear(refusal, folder)


def split_checkpoint(data: bytes):
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def test_a_checkpoint_comes_back(folder, checkpoint):
    assert resume(folder, checkpoint) == STATE


@fuzz(60)
@given(data=st.data())
def test_a_damaged_checkpoint(folder, checkpoint, data):
    read_checkpoint(folder, data.draw(damaged(checkpoint)))


@fuzz(60)
@given(data=st.data())
def test_a_checkpoint_with_one_wrong_value_in_its_header(folder, checkpoint, data):
    header, rest = split_checkpoint(checkpoint)
    key = data.draw(st.sampled_from(["state", "identity"]))
    old = json.loads(header["__metadata__"][key])
    changed = data.draw(mutations(old).filter(lambda value: dump(value) != dump(old)))
    header["__metadata__"][key] = dump(changed).decode()
    with pytest.raises(CheckpointError, match="it is not what was saved") as caught:
        resume(folder, with_header(dump(header), rest))
    assert is_clear(caught.value, folder / STATE_FILE)


def test_a_checkpoint_of_another_state_is_refused(folder, checkpoint):
    header, rest = split_checkpoint(checkpoint)
    metadata = header["__metadata__"]
    metadata["state"] = json.dumps({"extra": 1})
    del metadata["checksum"]
    metadata["checksum"] = fingerprint(metadata)
    with pytest.raises(CheckpointError, match="unexpected keyword argument 'extra'"):
        resume(folder, with_header(dump(header), rest))
