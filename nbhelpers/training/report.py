"""One checkpoint, scored once on one split beside its baselines: ``report.json``, ``report.md`` and the figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import environment, pick_device
from nbhelpers.training import checkpoint, history, mirror, pointers
from nbhelpers.training.checkpoint import Checkpoint
from nbhelpers.training.guards.guard import Finding
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.ledger_figure import ledger_figure
from nbhelpers.training.ledger_summary import ledger_by_phase, ledger_rows, ledger_summary, settled_step
from nbhelpers.training.metrics import Metric, paired_difference, summarise
from nbhelpers.training.opening import check_same_data
from nbhelpers.training.qualified import none_qualified
from nbhelpers.training.run import Run, read_json, replacing, write_json, writing
from nbhelpers.training.tables import ARROWS, MARKS, md_table, save_figures
from nbhelpers.training.task import Gate, Monitor, Task, monitor_of


def make_report(
    task: Task, run: Run, *, which: str = "shipped", split: str = "test", reference: Run | None = None
) -> dict[str, Any]:
    """Score a run's checkpoint and the null predictors on ``split``; write report.json, report.md and figures.

    The weights of ``which`` are loaded into the task, so every number is theirs: "best" by the monitor, "last",
    "average", "<phase>_best", …, or "shipped", which is the average where there is one, else the best, else (in a run
    that was stopped before its first validation) the last; the report says which it was. The best checkpoints of
    earlier phases stand among the baselines, each row of one checkpoint that the report names.

    Args:
        reference: a run of the same stage and data to compare with in the verdict (the one without the extra term).

    Raises:
        UserError: no checkpoint of that name, or a reference without a report on the same data and split.
    """
    which, found = checkpoint.asked_for(run, which, unfinished=True)
    data = {**task.describe_data(), "scored_split": split}
    other_run = _reference(reference, data)
    check_same_data(task, run)
    device = pick_device()
    task.to(device)
    for module in task.modules.values():
        module.to(device).eval()
    scores: dict[str, Mapping[str, Metric]] = {}
    earlier = {name: one for name, one in _earlier_phases(task, run).items() if one.sha256 != found.sha256}
    for name, one in [*earlier.items(), ("model", found)]:  # the model last: its weights stay in the task
        checkpoint.load_weights(one, task.modules)
        scores[name] = task.evaluate(split).metrics
    others = {**task.nulls, **task.controls}
    for name, predictor in tqdm(others.items(), desc="baselines", leave=False, disable=None):
        scores[name] = task.evaluate(split, predictor).metrics
    model = scores.pop("model")
    # What only the model has (a loss term followed on validation) belongs to history.csv: here every row is compared,
    # if not with all (a single forecast has no spread).
    model = {name: metric for name, metric in model.items() if any(name in scores[other] for other in others)}
    rows, ledger = history.read_rows(run.history_file), history.read_rows(run.ledger_file)
    settled = settled_step(rows)
    report: dict[str, Any] = {
        "stage": task.stage,
        "run": run.name,
        "profile": task.config.profile,
        "remarks": [*_unqualified(task, run), *_unfinished(task, run), *task.remarks()],
        "checkpoint": {"name": which, **_named(found), **checkpoint.parents(found)},
        "earlier_phases": {name: _named(one) for name, one in earlier.items()},  # rows among the baselines
        "data": data,
        "config": dataclasses.asdict(task.config),
        "metrics": {name: summarise(metric) for name, metric in model.items()},
        "baselines": {
            null: {
                name: {**summarise(metric), "model_minus_this": paired_difference(model[name], metric)}
                for name, metric in theirs.items()
            }
            for null, theirs in scores.items()
        },
        "ledger": ledger_summary(ledger, since=settled),
        "ledger_by_phase": ledger_by_phase(ledger, since=settled),
        "guards": read_guards(run),
        "device": environment()["device"],
        "train_seconds": sum(row["seconds"] for row in rows),
    }
    gates, verdict = task.judge(report, rows, other_run)
    report["gates"] = [dataclasses.asdict(gate) for gate in gates]
    report["verdict"] = dataclasses.asdict(verdict)
    figures = [*task.figures(report, rows), ("ledger", ledger_figure(ledger))]
    with writing(run.folder):
        save_figures(run.figures, figures)
        with replacing(run.folder / "report.md") as file:
            file.write(as_markdown(report, task.headlines, [name for name, _ in figures]))
        write_json(run.report_file, report)
    if run.copy_dir is not None:
        try:
            mirror.push(run, run.copy_dir)
        except mirror.CopyError as error:
            print(f"NOTE {error}")
    return report


def _earlier_phases(task: Task, run: Run) -> dict[str, Checkpoint]:
    """The best checkpoint of each phase but the last, by name: what did the later phases change?"""
    names = [f"{phase.name}_best" for phase in task.phases[:-1]]
    found = {name: checkpoint.find(run, name) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def _named(found: Checkpoint) -> dict[str, Any]:
    return {"step": found.step, "path": f"checkpoints/{found.folder.name}", "sha256": found.sha256}


def _unfinished(task: Task, run: Run) -> list[str]:
    """What a reader must know of a run that did not train as long as it was meant to."""
    last = checkpoint.find(run, "last")
    if last is None:
        return []
    progress, remarks = checkpoint.load_state(last, any_format=True).get("progress", {}), []
    if not {"epoch", "phase", "stale"} <= progress.keys():
        return ["Whether it was trained to its end is not known: its last checkpoint was written by another version."]
    rows = [row for row in history.read_rows(run.history_file) if row["epoch"] <= progress["epoch"]]
    for number, phase in enumerate(task.phases):
        epochs = sum(row["phase"] == phase.name for row in rows)
        done = f"{epochs} of {phase.epochs} epochs"
        done += f" of phase {phase.name!r}" if len(task.phases) > 1 else ""
        monitor = monitor_of(task, phase)
        patience = math.inf if monitor.patience is None else monitor.patience
        if epochs >= phase.epochs:
            continue
        if number < progress["phase"] or (number == progress["phase"] and progress["stale"] >= patience):
            stale = progress["stale"] if number == progress["phase"] else monitor.patience
            if stale is None:  # patience has not ended it
                remarks.append(f"Ended after {done}: their number was raised later, and an ended phase stays as it is.")
            else:
                remarks.append(
                    f"Stopped early after {done}: {stale} without a better {monitor.metric}{monitor.margin}."
                )
        else:
            remarks.append(f"Not finished: {done} are trained." + _warming_up(monitor, epochs, number))
    return remarks


def _unqualified(task: Task, run: Run) -> list[str]:
    """What a reader must know of a best checkpoint that the monitor has not chosen."""
    rows, said = history.read_rows(run.history_file), []
    reached = [phase for phase in task.phases if any(row["phase"] == phase.name for row in rows)]
    for phase in reached:
        best = pointers.read(run, "best" if phase is reached[-1] else f"{phase.name}_best") or {}
        monitor, several = monitor_of(task, phase), len(task.phases) > 1
        said.append(none_qualified(rows, phase.name, monitor, best.get("step"), several=several))
    return [sentence for sentence in said if sentence]


def _warming_up(monitor: Monitor, epochs: int, number: int) -> str:
    """What is shipped of a run that was stopped before a checkpoint of its phase may be the best."""
    if not 0 < epochs <= monitor.armed_after:
        return ""
    shipped = "the last checkpoint" if number == 0 else "the best one of the phase before"
    return f" None is chosen as the best in the first {monitor.armed_after} (warm-up): what is shipped is {shipped}."


def read_report(run: Run) -> dict[str, Any]:
    """The report of a finished run."""
    if not run.report_file.exists():
        raise UserError(f"{run.folder} has no report.json: run `nbhelpers evaluate` (or the Evaluate cell) first.")
    return read_json(run.report_file, what="a run's report.json")


def read_markdown(run: Run) -> str:
    """The text of a run's report.md."""
    path = run.folder / "report.md"
    if not path.exists():
        raise UserError(f"{path} is gone: run `nbhelpers evaluate` to write it again.")
    return path.read_text(encoding="utf-8")


def _reference(reference: Run | None, data: Mapping[str, Any]) -> dict[str, Any] | None:
    if reference is None:
        return None
    other = read_report(reference)
    for key in data:
        if key != "source" and other["data"].get(key) != data[key]:  # the same data may lie elsewhere
            raise UserError(
                f"reference run {reference.folder} was scored on other data (its {key} differs): choose one on the "
                "same data and split."
            )
    return other


def table(report: Mapping[str, Any], names: Sequence[str] | None = None) -> list[list[str]]:
    """Rows of text, header first: metric, model with interval, each baseline with whether the model is better."""
    baselines = list(report["baselines"])
    rows = [["metric", "model [95 % interval]", *baselines]]
    for name in names or report["metrics"]:
        entry = report["metrics"][name]
        row = [
            name + ARROWS.get(entry["better"], ""),
            f"{_number(entry['value'])} {_limits(entry['ci95'])}",
        ]
        for null in baselines:
            other = report["baselines"][null].get(name)
            mark = "" if other is None else MARKS[other["model_minus_this"]["is_better"]]
            row.append("" if other is None else f"{_number(other['value'])}{mark}")
        rows.append(row)
    return rows


def score_table(scores: Mapping[str, Mapping[str, Metric]], names: Sequence[str]) -> list[list[str]]:
    """Rows of text, header first: each metric in ``names`` for each predictor, pooled."""
    rows = [["metric", *scores]]
    for name in names:
        cells = [_number(_defined(metrics[name].value)) if name in metrics else "" for metrics in scores.values()]
        better = next(metrics[name].better for metrics in scores.values() if name in metrics)
        rows.append([name + ARROWS.get(better or "", ""), *cells])
    return rows


def _defined(value: float) -> float | None:
    return None if value != value else value


LEGEND = (
    "✓ the model is better, ✗ it is worse: the 95 % bootstrap interval of the paired difference over groups excludes 0."
)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _limits(limits: Sequence[float | None]) -> str:
    return f"[{_number(limits[0])}, {_number(limits[1])}]"


def as_markdown(report: Mapping[str, Any], headlines: Sequence[str], figures: Sequence[str]) -> str:
    """The report for people: remarks first, then verdict, gates, tables, figures."""
    verdict, data = report["verdict"], report["data"]
    lines = [f"# {report['stage']} · {report['run']}", ""]
    lines += [f"> **{remark}**" for remark in report["remarks"]] + [""]
    lines += [
        f"**Verdict: {verdict['name']}.** {verdict['meaning']}",
        "",
        f"Next: {verdict['next_step']}",
        "",
        "## Gates",
        "",
    ]
    lines += [f"- {Gate(**gate)}" for gate in report["gates"]]
    lines += ["", "## Guards", ""]
    lines += [f"- {Finding(**found)}" for found in report["guards"]] or ["- none had anything to say"]
    n = next(iter(report["metrics"].values()))["n"]
    lines += [
        "",
        f"## Scores on {data['scored_split']} (n = {n} independent groups)",
        "",
        md_table(table(report, headlines)),
        "",
        LEGEND,
        "",
        "<details><summary>All metrics</summary>",
        "",
        md_table(table(report)),
        "",
        "</details>",
    ]
    if any("by_label" in entry for entry in report["metrics"].values()):
        lines += [
            "",
            "## By lead time, step or band",
            "",
            "Pooled (the tables above): over everything that was counted. Mean: of the columns.",
            "",
        ]
        for rows in _label_tables(report):
            lines += [md_table(rows), ""]
    if report["ledger"]:
        lines += ["", "## What each loss term contributed (medians)", ""]
        lines += [md_table(ledger_rows(report["ledger_by_phase"]))]
    checkpoint_ = report["checkpoint"]
    steps = [str(parent["step"]) for parent in checkpoint_.get("parents", ())]
    of = f", the average of step {' and '.join(steps)}" if steps else ""
    lines += [
        "", "## What was scored", "",
        f"- checkpoint `{checkpoint_['path']}` ({checkpoint_['name']}, step {checkpoint_['step']}{of}), "
        f"sha256 `{checkpoint_['sha256']}`",
        *(
            f"- {name} `{one['path']}` (step {one['step']}), sha256 `{one['sha256']}`"
            for name, one in report.get("earlier_phases", {}).items()
        ),
        f"- data `{data['source']}`, sha256 `{data['sha256']}`",
        f"- split: {', '.join(f'{name} {value}' for name, value in data['split'].items())}",
        f"- profile {report['profile']}, trained for {report['train_seconds'] / 60:.1f} min on {report['device']}",
        "", "## Figures", "",
    ]  # fmt: skip
    lines += [f"![{name}](figures/{name}.png)\n" for name in figures]
    return "\n".join(lines) + "\n"


def _label_tables(report: Mapping[str, Any]) -> list[list[list[str]]]:
    """A table for each set of labels (lead times, bands)."""
    by_labels: dict[tuple[str, ...], list[str]] = {}
    for name, entry in report["metrics"].items():
        if "by_label" in entry:
            by_labels.setdefault(tuple(entry["by_label"]), []).append(name)
    return [_label_table(report, names, labels) for labels, names in by_labels.items()]


def _label_table(report: Mapping[str, Any], names: Sequence[str], labels: Sequence[str]) -> list[list[str]]:
    rows = [["metric", "of", *labels, "mean"]]
    for name in names:
        everyone = {
            "model": report["metrics"][name],
            **{null: scores[name] for null, scores in report["baselines"].items() if name in scores},
        }
        for who, scores in everyone.items():
            cells = [_number(scores["by_label"][label]["value"]) for label in labels]
            rows.append([name if who == "model" else "", who, *cells, _number(scores["mean_over_labels"])])
    return rows
