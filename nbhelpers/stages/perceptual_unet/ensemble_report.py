"""What an ensemble is worth beside its single members and beside another one: JSON, text and figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import environment
from nbhelpers.stages.perceptual_unet.ensemble import Ensemble, Scores, score_ensemble
from nbhelpers.stages.perceptual_unet.ensemble_scores import reliability_table
from nbhelpers.training.metrics import paired_difference, summarise
from nbhelpers.training.run import read_json, replacing, write_json
from nbhelpers.training.tables import ARROWS, MARKS, md_table, save_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"member": "single member", "mean": "ensemble mean", "pmm": "PMM", "ensemble": "ensemble"}
LEVELS = (74, 133)  # grey levels of the tables
PROBABILISTIC = ("crps", *(f"brier_{level}" for level in LEVELS))
# What two ensembles are compared by: whose score, and which.
COMPARED = (*(("ensemble", name) for name in PROBABILISTIC), *(("pmm", f"csi_{level}") for level in LEVELS))
LEGEND = (
    "PMM: probability-matched mean. A forecast that is read as certain has its mean absolute error as CRPS and its "
    "share of wrong pixels as Brier score. ✓ better, ✗ worse than a single member: the 95 % bootstrap interval of the "
    "paired difference over events excludes 0."
)


def make_ensemble_report(
    ensemble: Ensemble, folder: Path, *, split: str = "test", against: Ensemble | None = None
) -> dict[str, Any]:
    """Score an ensemble, and another one on the same windows; write ensemble.json, ensemble.md and figures/*.png.

    Args:
        folder: where to write; a report on the same runs and split that is there is replaced, also where the runs
            have been trained on since.
        against: opened ``beside=ensemble``; the differences are ensemble minus this one, paired over events.

    Raises:
        UserError: the folder holds the report of other runs or of another split, or cannot be written.
    """
    ensembles = named(ensemble, against)
    members = {name: _members(one) for name, one in ensembles.items()}
    _check_replaceable(folder / "ensemble.json", members, split)
    scores = {name: score_ensemble(one, split) for name, one in ensembles.items()}
    data = {**ensemble.task.describe_data(), "scored_split": split}
    report = {
        "stage": ensemble.task.stage,
        "remarks": _remarks(ensembles),
        "members": members,
        "data": data,
        "metrics": {name: _summaries(ensemble, mine) for name, mine in scores.items()},
        "reliability": {name: _reliability(mine) for name, mine in scores.items()},
        "differences": differences(scores),
        "device": environment()["device"],
    }
    figures = dict(ensemble_figures(ensembles, scores, split=split))
    try:
        save_figures(folder / "figures", figures.items())
        with replacing(folder / "ensemble.md") as file:
            file.write(as_markdown(report, list(figures)))
        write_json(folder / "ensemble.json", report)
    except OSError as error:
        raise UserError(f"the report cannot be written to {folder} ({error}): choose another folder.") from error
    return report


def named(ensemble: Ensemble, against: Ensemble | None = None) -> dict[str, Ensemble]:
    """The ensembles by what tells them apart: loss and number of members; else by their role."""
    both = [one for one in (ensemble, against) if one is not None]
    names = [f"{len(one.members)} × {one.loss}" for one in both]
    if len(set(names)) < len(names):
        names = [f"{role}: {name}" for role, name in zip(("first", "second"), names, strict=True)]
    return dict(zip(names, both, strict=True))


def _members(ensemble: Ensemble) -> list[dict[str, Any]]:
    return [
        {
            "run": one.run.name,
            "seed": one.config.seed,
            "step": one.checkpoint.step,
            "path": f"{one.run.name}/checkpoints/{one.checkpoint.folder.name}",
            "sha256": one.checkpoint.sha256,
        }
        for one in ensemble.members
    ]


def _check_replaceable(report_file: Path, members: Mapping[str, Any], split: str) -> None:
    """Raise ``UserError`` where the report of other runs or of another split would be lost."""
    if not report_file.exists():
        return
    theirs = read_json(report_file, what="an ensemble's report")
    if not {"members", "data"} <= theirs.keys() or _runs(theirs["members"]) != _runs(members):
        raise UserError(
            f"{report_file} is the report of other members than these: choose another folder, or delete it."
        )
    if (scored := theirs["data"]["scored_split"]) != split:
        raise UserError(
            f"{report_file} has the scores on {scored!r} and those on {split!r} would replace them: choose another "
            "folder, or delete it."
        )


def _runs(members: Mapping[str, Any]) -> dict[str, list[tuple[str, int]]]:
    """The runs of each ensemble: what stays when they are trained on."""
    return {name: [(one["run"], one["seed"]) for one in group] for name, group in members.items()}


def _remarks(ensembles: Mapping[str, Ensemble]) -> list[str]:
    """What a reader must know first: what the members' runs said of themselves, and ensembles of different size."""
    found = [
        remark for one in ensembles.values() for m in one.members for remark in m.run.read_config().get("remarks", [])
    ]
    sizes = {len(one.members) for one in ensembles.values()}
    if len(sizes) > 1:
        found.append(
            f"Ensembles of {' and '.join(map(str, sorted(sizes)))} members: Brier scores and PMM favour the larger "
            "one; fair CRPS favours none."
        )
    return list(dict.fromkeys(found))


def _shown(ensemble: Ensemble) -> tuple[str, ...]:
    """Metrics of the table; forecasts read as certain have all of them, the ensemble the probabilistic ones."""
    events = (f"{score}_{level}" for score in ("csi", "bias") for level in LEVELS)
    return (*PROBABILISTIC, *events, "mse", ensemble.task.lpips.key, "rapsd_ratio")


def _summaries(ensemble: Ensemble, scores: Scores) -> dict[str, dict[str, Any]]:
    single = {
        who: {
            name: {**summarise(metric), "minus_member": paired_difference(metric, scores["member"][name])}
            for name, metric in ((name, scores[who][name]) for name in _shown(ensemble))
        }
        for who in ("member", "mean", "pmm")
    }
    probabilistic = {name: summarise(metric) for name, metric in scores["ensemble"].items()}
    for name in PROBABILISTIC:
        probabilistic[name]["minus_member"] = paired_difference(scores["ensemble"][name], scores["member"][name])
    return {**single, "ensemble": probabilistic}


def _reliability(scores: Scores) -> dict[str, dict[str, list[float]]]:
    """By level: forecast probabilities, and the pixels and events counted at each."""
    found = {}
    for level in LEVELS:
        probability, pixels, events = reliability_table(scores["ensemble"][f"brier_{level}"])
        found[str(level)] = {
            "probability": probability.tolist(),
            "pixels": pixels.tolist(),
            "events": events.tolist(),
        }
    return found


def differences(scores: Mapping[str, Scores]) -> dict[str, dict[str, Any]]:
    """First ensemble minus second, paired over events, by score; nothing where there is only one."""
    if len(scores) < 2:
        return {}
    one, other = scores.values()
    return {
        f"{name} of {TITLES[who]}": {
            **paired_difference(one[who][name], other[who][name]),
            "n": one[who][name].groups,
            "better": one[who][name].better,
        }
        for who, name in COMPARED
    }


def ensemble_figures(
    ensembles: Mapping[str, Ensemble], scores: Mapping[str, Scores], *, split: str
) -> Iterator[tuple[str, Figure]]:
    """The figures of an ensemble's report, by file name; ``blur`` only where there are two."""
    from nbhelpers.stages.perceptual_unet import ensemble_figures as draw

    first = next(iter(ensembles.values()))
    window = draw.strongest_window(first, split=split)
    yield "exceedance", draw.exceedance_figure(first, window)
    yield "reliability", draw.reliability_figure(scores)
    yield "spread", draw.spread_figure(scores, first.task.leads)
    if len(ensembles) > 1:
        yield "blur", draw.blur_figure(ensembles, scores, window)


def table(metrics: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of text, header first, of one ensemble's ``report["metrics"]``: single member, mean, PMM, ensemble."""
    rows = [["metric", *(TITLES[who] for who in metrics)]]
    for name, entry in metrics["member"].items():
        cells = []
        for who, mine in metrics.items():
            better = mine[name]["minus_member"]["is_better"] if name in mine and who != "member" else None
            cells.append(_number(mine[name]["value"]) + MARKS[better] if name in mine else "")
        rows.append([f"{name}{ARROWS.get(entry['better'], '')}", *cells])
    return rows


def difference_table(found: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of text, header first, of ``report["differences"]``."""
    says = {True: "first is better", False: "second is better", None: "not shown"}
    rows = [["score", "first − second", "95 % interval", "n", ""]]
    for name, entry in found.items():
        low, high = map(_number, entry["ci95"])
        rows.append([name, _number(entry["value"]), f"[{low}, {high}]", str(entry["n"]), says[entry["is_better"]]])
    return rows


def _parts_table(report: Mapping[str, Any]) -> list[list[str]]:
    """What the probabilities of each ensemble are made of, pooled and by lead time."""
    parts = ("crps", "spread", "rmse_mean", "spread_skill")
    brier = (f"{part}_{level}" for level in LEVELS for part in ("brier", "reliability", "resolution", "uncertainty"))
    leads = [f"{minutes} min" for minutes in report["data"]["lead_minutes"]]
    rows = [["score", "of", "all", *leads]]
    for name in (*parts, *brier):
        for who, metrics in report["metrics"].items():
            entry = metrics["ensemble"][name]
            by_label = entry.get("by_label", {leads[0]: entry})
            cells = [_number(by_label[lead]["value"]) for lead in leads]
            rows.append([name, who, _number(entry["value"]), *cells])
    return rows


def as_markdown(report: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The report for people: remarks first, then tables and figures."""
    data, names = report["data"], list(report["metrics"])
    n = report["metrics"][names[0]]["ensemble"]["crps"]["n"]
    lines = [f"# {report['stage']} · ensemble", ""]
    lines += [f"> **{remark}**" for remark in report["remarks"]]
    lines += ["", f"Scores on {data['scored_split']} (n = {n} independent events), lead times together. {LEGEND}"]
    for name in names:
        lines += ["", f"## {name}", "", md_table(table(report["metrics"][name]))]
    if report["differences"]:
        lines += ["", f"## {names[0]} (first) minus {names[1]} (second)", ""]
        lines += [
            "Paired over events; better: the 95 % interval excludes 0, and there are at least 6 events.",
            "",
        ]
        lines += [md_table(difference_table(report["differences"]))]
    lines += ["", "## Parts, by lead time", ""]
    lines += ["Brier = reliability − resolution + uncertainty; spread_skill is 1 where spread and error agree.", ""]
    lines += [md_table(_parts_table(report)), "", "## What was scored", ""]
    for name, members in report["members"].items():
        lines += [f"- {name}: `{one['path']}` (seed {one['seed']}), sha256 `{one['sha256']}`" for one in members]
    lines += [f"- data `{data['source']}`, sha256 `{data['sha256']}`", "", "## Figures", ""]
    lines += [f"![{name}](figures/{name}.png)\n" for name in figures]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
