"""Rankings, sweeps and studies: read in full, or refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fuzz_helpers import damaged, deep, dump, fuzz, is_clear, json_values, mutations, refusal_of
from hypothesis import example, given
from hypothesis import strategies as st

from aplens import Head, HeadRanking
from aplens._io import read_json
from aplens.heads import ModelShape
from aplens.interventions import AblationSweep
from aplens.interventions.outcomes import Setting, SettingResult
from aplens.study import StudyFolder, StudySettings
from aplens.study.folder import read_table

OF_PREDICTOR = {
    "features": "clusters",
    "n_train": 3,
    "n_test": 2,
    "auc": [0.7, 0.5, 0.9],
    "confidence_auc": [0.6, 0.5, 0.8],
}
SHAP = HeadRanking.from_values(
    [Head(0, 0), Head(0, 1), Head(1, 0)],
    np.array([[0.5, -1.0], [0.25, 0.0], [1.0, 2.0]]),
    model=ModelShape("tiny", 2, 2),
    metadata=OF_PREDICTOR,
)
EFFECTS = HeadRanking(
    pd.DataFrame(
        {column: [0] for column in HeadRanking.COLUMNS}
        | {"low": [-1.0], "high": [1.0], "measured": [True]}
    ),
    model=ModelShape("tiny", 1, 1),
    metadata={"method": "effects", "metric": "log_prob", "n_prompts": 3},
)
SWEEP = AblationSweep(
    index=np.array([0, 2, 3]),
    files=["a.py", "b.py", "b.py"],
    clean=np.array([True, False, True]),
    results=[
        SettingResult(Setting("random", 1, 0), (Head(1, 0),), np.array([True, True, False])),
        SettingResult(
            Setting("toward_incorrect", 2, None),
            (Head(0, 0), Head(0, 1)),
            np.array([False, True, False]),
        ),
    ],
    skipped=["neutral, 9 heads: only 1 qualify"],
    setup={"model": "tiny", "seed": 0, "method": "zero"},
)
CORPORA = [{"name": "the JDK", "language": "java", "note": ""}]


def document_of(saved, folder) -> dict:
    saved.save(folder / "saved.json")
    return json.loads((folder / "saved.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("documents")


def check_ranking(ranking):
    assert all(h.layer < ranking.model.n_layers and h.head < ranking.model.n_heads for h in ranking)
    assert np.isfinite(ranking.to_frame()[list(HeadRanking.COLUMNS)].to_numpy(float)).all()
    repr(ranking)


def check_sweep(sweep):
    if sweep.files:
        assert len(sweep.to_frame()) == len(sweep.results)
        sweep.summary()


#: Results that lie alone, without a record of a stage: where, and who asks a folder for them.
READERS = {
    "shap": ("shap.json", lambda study: check_ranking(study.shap)),
    "effects": ("ranking.json", lambda study: check_ranking(study.ranking)),
    "sweep": ("ablations/sweep.json", lambda study: check_sweep(study.sweep)),
    "corpora": ("corpus.json", lambda study: study.corpora),
}


def ask(kind, folder):
    """What a study's folder gives; each one is a new folder, since one reads a file once."""
    READERS[kind][1](StudyFolder(folder))


def written(kind, data: bytes, folder):
    path = folder / READERS[kind][0]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def read(kind, data: bytes, folder) -> None:
    path = written(kind, data, folder)
    refusal = refusal_of(ValueError, ask, kind, folder)
    assert refusal is None or is_clear(refusal, path)


@pytest.fixture(scope="module")
def documents(folder):
    return {
        "shap": document_of(SHAP, folder),
        "effects": document_of(EFFECTS, folder),
        "sweep": document_of(SWEEP, folder),
        "corpora": CORPORA,
    }


@pytest.mark.parametrize("kind", READERS)
@fuzz(150)
@given(data=st.data())
def test_a_document_with_one_wrong_node(kind, documents, folder, data):
    read(kind, dump(data.draw(mutations(documents[kind]))), folder)


#: Keys under which anything may stand, or that a table need not have.
FREE = {
    "shap": {"name", "n_train", "n_test"},
    "effects": {"name", "method", "low", "high"},
    "sweep": set(),
    "corpora": {"language"},
}


def keys_of(node, path=()):
    """Where the keys of all tables in a document are."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items if isinstance(node, dict | list) else ():
        if isinstance(node, dict):
            yield (*path, key)
        if isinstance(value, dict | list):
            yield from keys_of(value, (*path, key))


@pytest.mark.parametrize("kind", READERS)
def test_every_key_that_is_missing_is_named(kind, documents, folder):
    for path in keys_of(documents[kind]):
        is_inner = len(path) > 1 and path[-1] in ("format", "version")
        if is_inner or path[-1] in FREE[kind] or path[-1] == "seed":  # of heads that are not drawn
            continue
        document = json.loads(json.dumps(documents[kind]))
        node = document
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
        file = written(kind, dump(document), folder)
        refusal = refusal_of(ValueError, ask, kind, folder)
        about = "damaged" if kind == "sweep" else path[-1]
        if path[-1] in ("format", "version"):
            about = "saved by aplens|of version"
        assert refusal is not None, path
        assert is_clear(refusal, file), path
        assert any(word in str(refusal) for word in about.split("|")), (path, refusal)


@fuzz(150)
@given(data=st.data())
def test_a_damaged_table_is_read_or_named(folder, data):
    file = folder / "table.parquet"
    pd.DataFrame([{"task": "all", "features": "confidence", "auc": 0.5}]).to_parquet(file)
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    refusal = refusal_of(ValueError, read_table, file)
    assert refusal is None or is_clear(refusal, file)


@pytest.mark.parametrize("kind", ["effects", "corpora"])  # all read JSON with one function
@fuzz(60)
@given(data=st.data())
def test_a_damaged_document(kind, documents, folder, data):
    read(kind, data.draw(damaged(dump(documents[kind]))), folder)


@pytest.mark.parametrize("kind", ["effects", "corpora"])  # all read JSON with one function
@fuzz(60)
@given(data=json_values.map(dump) | st.binary(max_size=40))
@example(data=b"[" * 100_000)
@example(data=b'{"a":' * 100_000)
@example(data=dump(deep(900)))
@example(data=b"")
@example(data="{}".encode("utf-16"))
@example(data=b"\xef\xbb\xbf{}")
@example(data=b"1e999")
@example(data=b"9" * 5000)
def test_what_is_no_such_document(kind, folder, data):
    read(kind, data, folder)


def change(document, *path, to):
    document = json.loads(json.dumps(document))
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = to
    return dump(document)


@pytest.mark.parametrize(
    ("kind", "path", "to", "words"),
    [
        ("shap", ["heads", 0, "layer"], 0.5, r"heads\[0\].layer must be a whole number"),
        ("shap", ["heads", 0, "layer"], True, r"heads\[0\].layer must be a whole number"),
        ("shap", ["heads", 1, "mean"], "0.5", r"heads\[1\].mean must be a finite number"),
        ("shap", ["heads", 1, "mean"], float("nan"), "finite"),
        ("shap", ["heads", 1, "mean"], 10**400, "finite"),
        ("shap", ["heads", 2], None, r"heads\[2\] must be a table"),
        ("shap", ["heads"], "abc", "heads must be a list"),
        ("shap", ["heads"], [], "heads must list at least one head"),
        ("shap", ["heads", 0, "measured"], 1, r"heads\[0\].measured must be true or false"),
        ("effects", ["heads", 0, "low"], "x", r"heads\[0\].low must be a finite number"),
        ("shap", ["n_layers"], "2", "n_layers must be a whole number"),
        ("shap", ["n_heads"], None, "n_heads must be a whole number"),
        ("shap", ["metadata"], [], "metadata must be a table"),
        ("shap", ["version"], 2, "of version 2; this aplens reads 1"),
        ("sweep", ["index", 0], 1, "damaged"),
        ("sweep", ["results", 0, "correct"], "111", "damaged"),
        ("sweep", ["version"], True, "of version True"),
        ("shap", ["metadata"], {}, "metadata.features is missing"),
        ("effects", ["metadata", "metric"], 3, "metadata.metric must be a text"),
        ("shap", ["metadata", "auc"], [0.5], "metadata.auc: low is missing"),
        ("shap", ["metadata", "auc", 1], None, "metadata.auc: low must be a finite"),
        ("corpora", [0], {}, r"\[0\].name is missing"),
        ("corpora", [0, "note"], None, r"\[0\].note must be a text"),
    ],
)
def test_the_wrong_node_is_named(kind, path, to, words, documents, folder):
    file = written(kind, change(documents[kind], *path, to=to), folder)
    with pytest.raises(ValueError, match=words) as caught:
        ask(kind, folder)
    assert is_clear(caught.value, file)


def test_a_sweep_that_does_not_say_how_it_ablated_is_none_of_a_study(tmp_path):
    path = tmp_path / READERS["sweep"][0]
    path.parent.mkdir()
    replace(SWEEP, setup={}).save(path)
    with pytest.raises(ValueError, match=r"setup\.method is missing") as caught:
        ask("sweep", tmp_path)
    assert is_clear(caught.value, path)


def test_a_folder_is_no_document(tmp_path):
    for load in (read_json, HeadRanking.load, AblationSweep.load):
        with pytest.raises(OSError, match=tmp_path.name):
            load(tmp_path)


# --- studies -----------------------------------------------------------------------------------

STUDY = b"""title = "x"
seed = 1
[model]
name = "smollm2-135m"
[[scenarios]]
corpus = ["jdk", "python"]
tasks = ["eol"]
per_task = 5
[split]
autoencoder = 0.25
fit = 0.25
rank = 0.25
ablate = 0.25
[mae]
preset = "small"
[mae.config]
encoder_dim = 64
layer_norm_eps = 1e-6
[mae.training]
patterns = 500
weight_decay = 0.05
[ablate]
sizes = [1, 2]
random_seeds = [0]
"""

KEYS = st.sampled_from(
    [
        "title",
        "seed",
        "model",
        "model.name",
        "model.kind",
        "scenarios",
        "scenarios.corpus",
        "scenarios.tasks",
        "scenarios.language",
        "scenarios.style",
        "scenarios.per_task",
        "scenarios.context_length",
        "split",
        "split.fit",
        "split.autoencoder",
        "mae",
        "mae.preset",
        "mae.config",
        "mae.config.n_ctx",
        "mae.config.layer_norm_eps",
        "mae.config.mask_ratio",
        "mae.config.base",
        "mae.training",
        "mae.training.patterns",
        "mae.training.weight_decay",
        "mae.training.learning_rate",
        "mae.training.max_seconds",
        "mae.training.precision",
        "mae.languages",
        "observe",
        "observe.batch_size",
        "rank",
        "rank.features",
        "rank.reducer",
        "rank.folds",
        "ablate",
        "ablate.sizes",
        "ablate.method",
        "ablate.balance",
        "ablate.random_seeds",
        "none.such",
        "''",
    ]
)
VALUES = st.sampled_from(
    [
        "0",
        "-1",
        "1",
        "1.5",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "true",
        '"x"',
        '""',
        '"\\u0000"',
        "'''a'''",
        "[]",
        "[[]]",
        "{}",
        "{a={}}",
        '[1,"a"]',
        "[0.9]",
        "[nan,0.5]",
        "1979-05-27",
        "1979-05-27T07:32:00Z",
        "07:32:00",
        "99999999999999999999",
        "[true]",
        "small",
        "none",
        "eol",
        "x",
        "1979-13-99",
        '"small"',
        '"paper"',
        '"from_dict"',
        '["eol"]',
        '"random"',
        '"clusters+task"',
        "[[0.9],[0.1]]",
    ]
) | st.sampled_from(["0x" + "f" * 5000, "9" * 5000, "[" * 5000, "x." * 2000 + "x", "'", "#", "\n"])


def read_study(path, changes=()):
    refusal = refusal_of(ValueError, StudySettings.from_toml, path, changes)
    if refusal is not None:
        assert is_clear(refusal, path) or is_clear(refusal, "expected a setting such as")
        return
    study = StudySettings.from_toml(path, changes)
    assert study.context_length >= 1
    assert sum(study.to_dict()["split"].values()) == pytest.approx(1)
    assert 0 <= study.seed < 2**32
    assert all(size >= 1 for size in study.ablate.sizes)


@fuzz(300)
@given(st.tuples(KEYS, VALUES))
@example(("split.fit", "nan"))
@example(("split.autoencoder", "-0.2"))
@example(("mae.preset", "from_dict"))
@example(("mae.config.layer_norm_eps", "9" * 400))
@example(("mae.config.dropout", "1"))
@example(("mae.training.patterns", '"many"'))
@example(("mae.training.weight_decay", "[0.9]"))
@example(("model.name", '"a\\u0000"'))
@example(("title", "{" + ".".join(["a"] * 2000) + " = 1}"))
@example(("seed", "0x" + "f" * 5000))
@example(("seed", "-1"))
@example(("title", "[" * 5000 + "]" * 5000))
@example(("title", "1979-13-99"))
def test_a_setting_of_any_kind(folder, change):
    path = folder / "study.toml"
    path.write_bytes(STUDY)
    key, value = change
    read_study(path, [f"{key} = {value}"])
    path.write_text(f"{key} = {value}\n")
    read_study(path)


@fuzz(100)
@given(damaged(STUDY) | st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"\xef\xbb\xbftitle = 'x'")
@example("title = 'x'".encode("utf-16"))
@example(b"seed = 1\nseed = 2")
@example(b"x = " + b"[" * 5000)
@example(b"x = " + b"9" * 5000)
@example(b"\0")
def test_a_study_of_any_bytes(folder, data):
    path = folder / "study.toml"
    path.write_bytes(data)
    read_study(path)


@fuzz(100)
@given(st.lists(st.text(max_size=20) | st.tuples(KEYS, st.text(max_size=8)).map("=".join)))
@example([""])
@example(["# nothing"])
@example(["\n"])
@example(["seed = '''"])
def test_changes_of_any_text(folder, changes):
    path = folder / "study.toml"
    path.write_bytes(STUDY)
    read_study(path, changes)


def test_a_byte_order_mark_is_no_part_of_a_study(tmp_path):
    (tmp_path / "study.toml").write_bytes(b"\xef\xbb\xbf" + STUDY)
    assert StudySettings.from_toml(tmp_path / "study.toml").seed == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("split.autoencoder=-0.25", "split must have shares of 0 or more"),
        ("split.fit=nan", "split.fit must be a finite number"),
        ("mae.preset=from_dict", "mae.preset must be one of"),
        ("mae.config.dropout=1", "unknown key mae.config.'dropout'"),
        ("mae.training.patterns=many", "mae.training: patterns must be a whole number, got 'many'"),
        ("mae.training.weight_decay=[0.9]", "weight_decay must be a finite number"),
        ("ablate.sizes=[0]", r"ablate.sizes\[0\] must be 1 to"),
        ("ablate.method=mode", "ablate.method must be one of"),
        ("rank.features=all", "features must be one of"),
        ("rank.folds=1", "rank.folds must be 2 to"),
        ("seed=-1", "seed must be 0 to 4294967295, got -1"),
        ("# nothing", "expected a setting such as"),
    ],
)
def test_values_that_no_stage_could_use_are_refused_at_once(tmp_path, change, words):
    path = tmp_path / "study.toml"
    path.write_bytes(STUDY)
    with pytest.raises(ValueError, match=words):
        StudySettings.from_toml(path, [change])
