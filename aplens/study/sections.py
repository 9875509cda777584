"""What a study found, part by part: tables, and the sections of its page around them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from aplens import plots
from aplens._tokens import displayable_token
from aplens.correctness.evaluation import FEWEST_OF_TASK
from aplens.intervals import Estimate
from aplens.mae import BASELINES
from aplens.study import findings
from aplens.style import to_svg
from aplens.tables import Table

if TYPE_CHECKING:
    import pandas as pd

    from aplens.heads import HeadRanking
    from aplens.interventions import AblationSweep
    from aplens.mae import Reconstruction
    from aplens.study.folder import StudyFolder
    from aplens.views import HeadCards

_TOP_HEADS = 15
_SAMPLE_LINES = 14

_SWEEP_COLUMNS = {
    "ablated": "ablated",
    "accuracy": "accuracy, %",
    "change": "change, points",
    "over_random": "over random, points",
    "incorrect_to_correct": "incorrect → correct",
    "correct_to_incorrect": "correct → incorrect",
    "seed": "seed",
    "heads": "heads",
}
_SWEEP_FORMATS = {
    "accuracy": ".1%",
    "change": "+.1%",
    "over_random": "+.1%",
    "incorrect_to_correct": ".1f",
    "correct_to_incorrect": ".1f",
}


@dataclass(frozen=True)
class Picture:
    """A figure as the address of its own data."""

    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """One part of the page; `name` is its address there, `html` what is drawn already, escaped.

    `folded` tables open on a click, and pictures and tables too where `aside` says what they are
    when they are no result.
    """

    name: str
    title: str
    text: Sequence[str] = ()
    html: str = ""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()
    aside: str = ""


# --- tables ------------------------------------------------------------------------------------


def main_tables(folder: StudyFolder) -> list[Table]:
    """The tables that the page, `results.md` and the terminal share."""
    return [
        tabulate_tasks(task_accuracy(folder.observations.table)),
        *tabulate_predictors(folder.predictors),
        tabulate_heads(folder.ranking),
        *([] if folder.shap.is_at_chance else [tabulate_shap(folder.shap)]),
        tabulate_sweep(folder.sweep),
    ]


def task_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """The model's accuracy on each task, with 95 % intervals that resample source files.

    Columns `task` ("all" for all of them together), `n`, `accuracy`, `low`, `high`. A task of fewer
    than ten scenarios has no row of its own: its share would say nothing.
    """
    import pandas as pd

    from aplens.intervals import FileBootstrap

    rows: list[dict[str, Any]] = []
    for task, group in [("all", table), *table.groupby("task", sort=True)]:
        if task != "all" and len(group) < FEWEST_OF_TASK:
            continue
        estimate = FileBootstrap(list(group["file"])).mean(group["correct"].to_numpy(dtype=float))
        names = ("accuracy", "low", "high")
        rows.append({"task": task, "n": len(group), **dict(zip(names, estimate, strict=True))})
    return pd.DataFrame(rows)


def tabulate_tasks(frame: pd.DataFrame) -> Table:
    """`task_accuracy`, the best task first."""
    return Table.from_frame(
        _with_ends(frame, "accuracy").sort_values("accuracy", ascending=False),
        {"task": "task", "n": "scenarios", "accuracy": "accuracy, %"},
        caption="Accuracy by task",
        formats={"accuracy": ".1%"},
    )


def tabulate_predictors(frame: pd.DataFrame) -> list[Table]:
    """How good each predictor of correctness is, and what it is beyond simpler ones."""
    ordered = frame.sort_values("auc", ascending=False)
    kinds = ["baseline" if _is_baseline(name) else "AP-MAE" for name in ordered["features"]]
    figures = {"auc": "AUC", "accuracy": "accuracy, %", "calibration_error": "calibration error"}
    beyond = {
        "over_confidence": "over confidence",
        "over_statistics": "over statistics",
        "over_hand_made": "over hand-made",
    }
    tables = [
        Table.from_frame(
            ordered.assign(kind=kinds),
            {"features": "features", "kind": "kind", **figures},
            caption="Predictors of correctness",
            formats={"accuracy": ".1%"},
        )
    ]
    if any(name in frame for name in beyond):
        tables.append(
            Table.from_frame(
                ordered,
                {"features": "features", **beyond},
                caption="Their AUC beyond that of simpler features",
                formats=dict.fromkeys(beyond, "+.3f"),
            )
        )
    return tables


def tabulate_heads(ranking: HeadRanking) -> Table:
    """The first heads of a ranking by effects: measured ones have intervals."""
    facts = ranking.metadata
    frame = ranking.to_frame().head(_TOP_HEADS)
    measured = frame["measured"].astype(bool)
    frame[["low", "high"]] = frame[["low", "high"]].where(measured)
    known = measured.map({True: "measured", False: "estimated"})
    unit = plots.METRIC_UNITS.get(facts["metric"], facts["metric"])
    return Table.from_frame(
        _with_ends(frame.assign(name=frame.index, known=known), "mean"),
        {"name": "head", "mean": f"effect, {unit}", "known": "how"},
        caption=f"Heads of {ranking.model.name} by the effect of ablating each alone",
        formats={"mean": "+.3f"},
    )


def tabulate_shap(ranking: HeadRanking) -> Table:
    """The first heads of a ranking by SHAP values."""
    scores = ("importance", "mean", "toward_incorrect", "toward_correct")
    frame = ranking.to_frame().head(_TOP_HEADS)
    return Table.from_frame(
        frame.assign(name=frame.index),
        {"name": "head"} | {score: score.replace("_", " ") for score in scores},
        caption=f"Heads of {ranking.model.name} by SHAP (log-odds of an incorrect prediction)",
        formats=dict.fromkeys(scores, "#.3g") | {"mean": "+#.3g"},
    )


def tabulate_sweep(sweep: AblationSweep) -> Table:
    """Each choice and number of heads; random heads are averaged over draws."""
    caption = (
        f"Heads ablated ({sweep.setup['method']}) on {len(sweep.clean):,} held-out scenarios; "
        f"nothing ablated: accuracy {sweep.clean_accuracy:.1%}"
    )
    return _tabulate_settings(sweep.summary(), caption)


def _tabulate_settings(frame: pd.DataFrame, caption: str) -> Table:
    named = [
        f"{size} {choice.replace('_', ' ')}"
        for size, choice in zip(frame["size"], frame["choice"], strict=True)
    ]
    return Table.from_frame(
        _with_ends(frame, "accuracy").assign(ablated=named),
        _SWEEP_COLUMNS,
        caption=caption,
        formats=_SWEEP_FORMATS,
    )


def _with_ends(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """A frame whose `low` and `high` are of this figure."""
    return frame.rename(columns={end: f"{name}_{end}" for end in ("low", "high")})


def _is_baseline(features: str) -> bool:
    return plots.is_baseline(features, plots.PREDICTOR_BASELINES)


# --- sections ----------------------------------------------------------------------------------


def show_tasks(frame: pd.DataFrame) -> Section:
    """How often the unchanged model is right."""
    is_total = frame["task"] == "all"
    n_left_out = int(frame["n"][is_total].sum() - frame["n"][~is_total].sum())
    left_out = [
        f"{n_left_out} scenarios, of tasks that have fewer than {FEWEST_OF_TASK}, are counted in "
        "the total alone."
    ]
    return Section(
        "tasks",
        "The model's accuracy by task",
        text=[
            findings.describe_task_accuracy(frame),
            "The unchanged model's most probable next token against the file's own.",
            *(left_out if n_left_out else []),
        ],
        pictures=[
            _picture(
                _plot_tasks(frame),
                f"Dot plot: accuracy on each of {len(frame)} tasks with 95 % intervals.",
                "Share of scenarios whose first token the model predicts, by task. Intervals are "
                "bootstrapped over source files.",
            )
        ],
        folded=[tabulate_tasks(frame)],
    )


def _plot_tasks(frame: pd.DataFrame) -> Figure:
    ordered = _with_ends(frame, "accuracy").sort_values("accuracy", ascending=False)
    named = [f"{row.task} ({row.n})" for row in ordered.itertuples()]
    figure = plots.plot_intervals(
        ordered.set_axis(named).rename_axis("task (scenarios)"),
        "accuracy",
        "accuracy (95 % interval)",
    )
    figure.axes[0].set_xlim(0, 1)
    figure.axes[0].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def show_reconstruction(
    reconstruction: Reconstruction, labels: Sequence[str], errors: pd.DataFrame
) -> Section:
    """Some patterns that AP-MAE filled in, and its error beside that of simpler predictors."""
    ordered = _with_ends(errors, "error").sort_values("error")
    return Section(
        "reconstruction",
        "Reconstruction of masked attention patterns",
        text=[findings.describe_reconstruction(errors)],
        pictures=[
            _picture(
                plots.plot_reconstruction(reconstruction, labels),
                "Attention patterns of some heads: original, with patches masked, and as AP-MAE "
                "reconstructs them.",
                "Log-normalized attention of some heads; grey patches were hidden from AP-MAE. "
                "Nothing lies above the diagonal: no token attends to a later one.",
            ),
            _picture(
                _plot_errors(ordered),
                f"Dot plot: squared error on masked patches of {len(errors)} predictors.",
                "Mean squared error on masked patches, on source files never trained on. Grey: "
                "predictors that are no AP-MAE.",
            ),
        ],
        folded=[
            _tabulate_patterns(reconstruction, labels),
            Table.from_frame(
                ordered,
                {"predictor": "predictor", "error": "squared error"},
                caption="Reconstruction error",
                formats={"error": ".4f"},
            ),
        ],
    )


def _plot_errors(ordered: pd.DataFrame) -> Figure:
    figure = plots.plot_intervals(
        ordered.set_index("predictor"),
        "error",
        "mean squared error on masked patches (95 % interval; lower is better)",
        BASELINES,
    )
    figure.axes[0].set_xlim(left=0)
    return figure


def _tabulate_patterns(reconstruction: Reconstruction, labels: Sequence[str]) -> Table:
    errors = reconstruction.error.reshape(-1).tolist()
    hidden = reconstruction.mask.reshape(len(errors), -1).float().mean(dim=-1).tolist()
    rows = [
        [label, f"{share:.0%}", f"{error:.4f}"]
        for label, share, error in zip(labels, hidden, errors, strict=True)
    ]
    return Table(["pattern", "patches hidden", "squared error"], rows, "Patterns shown")


def show_predictors(frame: pd.DataFrame) -> Section:
    """What predicts whether the model is right."""
    figure = plots.plot_intervals(
        frame.sort_values("auc", ascending=False).set_index("features"),
        "auc",
        "AUC (95 % interval; 0.5 is chance)",
        plots.PREDICTOR_BASELINES,
        chance=0.5,
    )
    return Section(
        "predictors",
        "Predicting whether the model is right",
        text=[
            "Without knowing the answer, and on source files not fitted on. A predictor is worth "
            "something only against the baselines, the model's own confidence first of all."
        ],
        pictures=[
            _picture(
                figure,
                f"Dot plot: AUC of {len(frame)} sets of features with 95 % intervals.",
                "Area under the ROC curve. Grey: features that need no AP-MAE. Intervals are "
                "bootstrapped over source files.",
            )
        ],
        tables=tabulate_predictors(frame),
    )


def show_ranking(ranking: HeadRanking) -> Section:
    """The heads by their effects."""
    facts = ranking.metadata
    return Section(
        "heads",
        "The heads that matter",
        text=[
            ranking.verdict,
            "The effect of a head: what ablating it alone does to the answer's log-probability, "
            "where negative says that the answer needs the head. Effects of all heads are "
            f"estimated; those of the first {len(ranking.measured)} are then measured on "
            f"{facts['n_prompts']} scenarios, with an interval that resamples source files.",
        ],
        pictures=[]
        if ranking.is_noise
        else [
            _picture(
                plots.plot_head_map(ranking, "mean"),
                f"Heat map, layers by heads: mean effect of ablating each of {len(ranking)} heads.",
                "Mean effect of ablating each head. Blue: the answer needs it. Red: the answer "
                "does better without it.",
            )
        ],
        tables=[tabulate_heads(ranking)],
        folded=[_tabulate_every_head(ranking, "Mean effect of every head")],
    )


def show_cards(cards: HeadCards) -> Section:
    """What the first heads do."""
    return Section(
        name="cards",
        title="What these heads do",
        text=[
            f"The first {len(cards)} heads, on {cards.n_prompts} of the scenarios. "
            "Pictures: a head's typical pattern, and its habit there, which is what AP-MAE expects "
            "of each query from the rest of the pattern. Surprise: attention beyond the habit. "
            "Bars: which keys get it."
        ],
        html=cards.to_html(),
    )


def show_shap(ranking: HeadRanking) -> Section:
    """The heads that a predictor of errors reads; no picture of them where it is at chance."""
    features = ranking.metadata["features"]
    best = str(ranking.top(1)[0])
    auc, confidence = (Estimate(*ranking.metadata[key]) for key in ("auc", "confidence_auc"))
    return Section(
        "shap",
        f"The heads that a predictor on {features} reads",
        text=[
            ranking.verdict,
            f"SHAP values of a predictor of errors on {features}, in log-odds of an incorrect "
            "prediction, averaged over scenarios: the paper's way to rank heads. They say which "
            "heads the predictor reads, not which cause an error. It has "
            f"AUC {auc} on held-out files; the model's own confidence has {confidence}.",
        ],
        pictures=[]
        if ranking.is_noise
        else [
            _picture(
                plots.plot_shap_summary(ranking, _TOP_HEADS),
                f"Bar chart: SHAP values of the most important heads, {best} first.",
                "The most important heads: how far each pushes toward incorrect (right) and toward "
                "correct (left).",
            ),
        ],
        tables=[tabulate_shap(ranking)],
        folded=[_tabulate_every_head(ranking, "Mean SHAP value of every head")],
        aside="No result, since the predictor is no better than chance: its order of heads"
        if ranking.is_at_chance
        else "",
    )


def _tabulate_every_head(ranking: HeadRanking, caption: str) -> Table:
    scores = ranking.to_frame().pivot_table(index="layer", columns="head", values="mean")
    scores = scores.rename(columns="head {}".format).rename_axis(columns=None)
    formats = dict.fromkeys(map(str, scores), "+#.3g")
    return Table.from_frame(scores.reset_index(), caption=caption, formats=formats)


def show_sweep(sweep: AblationSweep) -> Section:
    """What ablating heads does."""
    text = [
        f"{len(sweep.clean):,} scenarios that neither the predictor nor the rankings saw; the "
        f"unchanged model is right on {sweep.clean_accuracy:.1%} of them."
    ]
    if sweep.skipped:
        text.append(f"Not run: {'; '.join(sweep.skipped)}.")
    if not sweep.results:
        return Section("ablation", "Ablating heads", text)
    return Section(
        "ablation",
        "Ablating heads",
        text,
        pictures=[
            _picture(
                sweep.plot(),
                "Line plot: accuracy against the number of ablated heads, one line for each order "
                "of heads, and the unchanged model's accuracy as a dotted line.",
                "Accuracy with more and more heads ablated; random heads are averaged over draws. "
                "Intervals are those of the change from the unchanged model on the same scenarios, "
                "bootstrapped over source files.",
            )
        ],
        tables=[tabulate_sweep(sweep)],
        folded=[_tabulate_settings(sweep.to_frame(), "Every setting")],
    )


def show_times(seconds: dict[str, float]) -> Section:
    """How long each stage took, in seconds; the report, which is being written, left out."""
    done = {stage: taken for stage, taken in seconds.items() if stage != "report"}
    digits = 1 if sum(done.values()) < 60 else 0
    rounded = {stage: round(taken, digits) for stage, taken in done.items()}
    rows = [[stage, _duration(taken)] for stage, taken in rounded.items()]
    rows.append(["all", _duration(sum(rounded.values()))])  # of what is shown, so that it adds up
    table = Table(["stage", "time"], rows, "Time by stage, interrupted runs counted")
    text = ["Loading the model is part of the first stage that ran it. This report comes on top."]
    return Section("timings", "How long it took", text=text, tables=[table])


def show_sample(
    task: str,
    place: str,
    prompt: str,
    tokens: tuple[str, str],
    confidence: float,
    correct: bool,
) -> dict[str, Any]:
    """A scenario as the page shows it, its source code cut to the last lines.

    `tokens` are what the file goes on with and the model's most probable one, whose probability is
    the confidence; `correct` says whether they are the same (texts of two tokens can be equal).
    """
    lines = prompt.replace("\r\n", "\n").split("\n")
    shown = lines[-_SAMPLE_LINES:]
    cut = ["…"] if len(lines) > len(shown) else []
    target, predicted = map(displayable_token, tokens)
    return {
        "task": task,
        "place": place,
        "code": "\n".join([*cut, *shown]),
        "target": target,
        "predicted": predicted,
        "confidence": f"{confidence:.0%}",
        "correct": correct,
    }


def _picture(figure: Figure, alt: str, caption: str) -> Picture:
    # An <img> of data, not inline SVG: ids of several figures cannot clash, and it has a plain alt.
    data = base64.b64encode(to_svg(figure)).decode()
    return Picture(f"data:image/svg+xml;base64,{data}", alt, caption)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
