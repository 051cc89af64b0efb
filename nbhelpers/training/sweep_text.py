"""A sweep's table for people: ``sweep.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nbhelpers.core.errors import UserError
from nbhelpers.training.guards.guard import Finding
from nbhelpers.training.run import read_json
from nbhelpers.training.sweep_scores import number, signed
from nbhelpers.training.tables import ARROWS, MARKS, md_table
from nbhelpers.training.task import Gate


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds a sweep's table."""
    return (folder / "sweep.json").exists()


def read_sweep(folder: Path) -> dict[str, Any]:
    """The content of sweep.json.

    Raises:
        UserError: it is not there, or damaged.
    """
    return read_json(folder / "sweep.json", what="a sweep's sweep.json")


def read_text(folder: Path) -> str:
    """The text of sweep.md."""
    path = folder / "sweep.md"
    if not path.exists():
        raise UserError(f"{path} is gone: run the sweep again to write it; it trains nothing that is finished.")
    return path.read_text(encoding="utf-8")


def settings_table(report: Mapping[str, Any], split: str = "val") -> list[list[str]]:
    """Rows of text, header first: each setting's shares and minutes, and its headline scores over all seeds.

    A mark says that the paired interval of the difference to the reference excludes 0. The last rows are the spreads
    and, for validation, the forecasts that need no training.
    """
    names, compared = report["headlines"], report[split]
    better = {name: cell["better"] for cells in compared.values() for name, cell in cells.items()}
    rows = [
        [
            "setting",
            "runs",
            "value share",
            "gradient share",
            "min",
            *(n + ARROWS.get(better.get(n) or "", "") for n in names),
        ]
    ]
    for setting in report["settings"]:
        done = [row for row in report["rows"] if row["setting"] == setting and row["stopped"] is None]
        title = f"{setting} (best)" if setting == report["best"] else setting
        if not done:
            rows.append([title, "0", *["–"] * (3 + len(names))])
            continue
        shares = [sum(row[key] for row in done) / len(done) for key in ("value_share", "grad_share", "minutes")]
        cells = [_cell(compared[setting][name]) for name in names]
        rows.append([title, str(len(done)), f"{shares[0]:.3%}", f"{shares[1]:.2%}", f"{shares[2]:.1f}", *cells])
    for key, title in (
        ("between_settings", "spread between settings"),
        ("between_seeds", "spread between seeds"),
        ("of_differences", "spread between seeds of a difference"),
    ):
        rows.append([title, *[""] * 4, *(number(report["spread"][split][name][key]) for name in names)])
    if split == "val":
        for null, scores in report["baselines"].items():
            rows.append([null, *[""] * 4, *(number(scores[name]) if name in scores else "" for name in names)])
    return rows


def difference_table(report: Mapping[str, Any], split: str) -> list[list[str]]:
    """Rows of text, header first: each setting minus the reference with the paired 95 % interval, by metric."""
    rows = [["setting minus " + report["reference"], *report["headlines"]]]
    for setting, cells in report[split].items():
        differences = [cells[name]["minus_reference"] for name in report["headlines"]]
        if differences[0] is not None:
            rows.append([setting, *(signed(difference) for difference in differences)])
    return rows


def summary(report: Mapping[str, Any]) -> str:
    """One line: the best setting with the scores that the choice is made on, and what the sweep has cost."""
    best = report["best"] or "none"
    if report["best"] is not None:
        cells = report["val"][report["best"]]
        scores = [f"{name} {number(cells[name]['value'])}" for name in report["decided_by"]]
        best += f" ({', '.join([*scores, 'on validation'])})"
    minutes = sum(row["minutes"] for row in report["rows"])
    return f"Best setting: {best}; {len(report['rows'])} runs, {minutes:.1f} min in all on {report['device']}."


def effect_sentences(report: Mapping[str, Any]) -> list[str]:
    """Whether the setting matters, metric by metric, on validation and on test."""
    return [
        f"{title}, {effect['sentence']}"
        for split, title in (("val", "validation"), ("test", "test"))
        for effect in report["effects"][split].values()
    ]


def as_markdown(report: Mapping[str, Any], figures: Sequence[str]) -> str:
    """The whole text: remarks and verdict first, then tables, runs, figures."""
    verdict, done = report["verdict"], len(report["rows"])
    lines = [f"# {report['stage']} · sweep {report['sweep']}", ""]
    if done < report["planned"]:
        lines += [f"> **Not finished: {done} of {report['planned']} runs are done.**"]
    lines += [f"> **{remark}**" for remark in report["remarks"]] + [""]
    lines += [f"**Verdict: {verdict['name']}.** {verdict['meaning']}", "", f"Next: {verdict['next_step']}", ""]
    lines += [summary(report), "", "## Gates", ""]
    lines += [f"- {Gate(**gate)}" for gate in report["gates"]] or ["- no setting to judge yet"]
    lines += ["", "## Guards", ""] if report["guards"] else []
    lines += [f"- {Finding(**found)}" for found in report["guards"]]
    lines += ["", "## Does the setting matter?", ""]
    lines += [f"- {sentence}" for sentence in effect_sentences(report)] or ["- nothing to compare yet"]
    lines += [
        "",
        "A setting counts as different where the paired 95 % interval over groups excludes 0 and the difference is "
        "larger than seeds explain. The intervals are of one comparison each, not corrected for their number.",
    ]
    for split, title in (("val", "Validation: what the choice is made on"), ("test", "Test: only shown")):
        n = next((cell["n"] for cells in report[split].values() for cell in cells.values()), 0)
        lines += ["", f"## {title} (n = {n} groups)", "", md_table(settings_table(report, split))]
        differences = difference_table(report, split)
        if len(differences) > 1:
            lines += ["", "Differences, all common seeds together, paired over groups:", "", md_table(differences)]
    lines += ["", "## Runs", "", md_table(_run_table(report))]
    lines += [f"- {row['run']}: {row['stopped']}" for row in report["rows"] if row["stopped"] is not None]
    data = report["data"]
    lines += [
        "", f"- data `{data['source']}`, sha256 `{data['sha256']}`",
        f"- split: {', '.join(f'{name} {value}' for name, value in data['split'].items())}",
        f"- profile {report['profile']}, on {report['device']}",
        "", "## Figures", "",
    ]  # fmt: skip
    lines += [f"![{name}](figures/{name}.png)\n" for name in figures]
    return "\n".join(lines) + "\n"


def _run_table(report: Mapping[str, Any]) -> list[list[str]]:
    names = report["headlines"]
    rows = [["run", "checkpoint", "sha256", "gradient share", "min", *names]]
    for row in report["rows"]:
        scored = row["checkpoint"]
        about = ["stopped", ""] if scored is None else [f"step {scored['step']}", f"`{scored['sha256'][:12]}`"]
        scores = [number(row["val"].get(name)) if scored else "–" for name in names]
        rows.append([row["run"], *about, f"{row['grad_share']:.2%}", f"{row['minutes']:.1f}", *scores])
    return rows


def _cell(cell: Mapping[str, Any]) -> str:
    difference = cell["minus_reference"]
    return number(cell["value"]) + MARKS[difference["is_better"] if difference else None]
