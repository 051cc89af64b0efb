"""A sweep: one task under several settings and seeds, every run an ordinary run folder, all scored alike."""

from __future__ import annotations

import dataclasses
import gc
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbhelpers.core.errors import UserError
from nbhelpers.core.runtime import environment, pick_device
from nbhelpers.training.guards.guard import Finding, GuardStop
from nbhelpers.training.guards.inert_grid import InertGrid
from nbhelpers.training.ledger import Entry
from nbhelpers.training.opening import open_run
from nbhelpers.training.run import replacing, write_json, writing
from nbhelpers.training.sweep_row import SPLITS, Row, make_row
from nbhelpers.training.sweep_scores import Scores, compare, effects, plain, spreads
from nbhelpers.training.sweep_text import as_markdown
from nbhelpers.training.tables import save_figures
from nbhelpers.training.task import Gate, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Balance = Callable[[Any], Sequence[Entry]]  # settings -> what each loss term contributes on a real batch


@dataclass(frozen=True)
class Setting:
    """One point of the grid."""

    name: str  # of its run folders, e.g. "share-0.1"
    config: Any  # the task's settings; the seed in it is replaced


@dataclass(frozen=True)
class Plan:
    """What a stage must tell ``sweep``."""

    settings: Sequence[Setting]  # the first is the reference: it has no such term
    seeds: Sequence[int]
    term: str  # the loss term whose weight is varied
    make_task: Callable[[Any], Any]  # settings -> a fresh Task
    measure: Callable[[Any], Balance]  # before training, on a batch of the first task that has the term
    cure: Callable[[Balance], str]  # what to do about a grid that is inert as a whole
    # sweep.json so far -> best setting; gates of it, or of the setting nearest to the rule; verdict
    judge: Callable[[Mapping[str, Any]], tuple[str | None, Sequence[Gate], Verdict]]
    decided_by: Sequence[str]  # the headlines that the rule looks at, those of them that the task has
    figures: Callable[[Mapping[str, Any]], Iterator[tuple[str, Figure]]]  # of sweep.json


@dataclass(frozen=True)
class Swept:
    """What a call of ``sweep`` did."""

    folder: Path
    report: dict[str, Any]  # the content of sweep.json
    interrupted: bool  # stopped by the user; run again to go on

    @property
    def finished(self) -> dict[str, list[Path]]:
        """Folders of the runs that were trained to their end, by setting."""
        found: dict[str, list[Path]] = {}
        for row in self.report["rows"]:
            if row["checkpoint"] is not None:
                found.setdefault(row["setting"], []).append(self.folder / row["run"])
        return found

    @property
    def all_stopped(self) -> bool:
        """Whether guards let no run through."""
        rows = self.report["rows"]
        return bool(rows) and all(row["stopped"] is not None for row in rows)


def term_entry(entries: Sequence[Entry], term: str) -> Entry:
    """The one of ``term``."""
    return next(entry for entry in entries if entry.term == term)


def sweep(plan: Plan, folder: Path, *, force: bool = False, copy_dir: Path | None = None) -> Swept:
    """Train every setting with every seed in ``folder/<setting>-seed<k>``, and write sweep.json, sweep.md, figures.

    Finished runs are taken as they are and others go on where they stand, so a second call trains nothing twice, and a
    larger grid extends the sweep. Each row is the best checkpoint of its run by the monitor, with the model alone
    scored on validation and test. The table is written anew after every run, the figures at the end. A run that a
    guard stops is a row with the reason; it is tried again by the next call. All settings are trained with one seed
    before the next, so that a sweep that is stopped early compares settings already.

    Args:
        force: train a grid that is inert as a whole; sweep.json then says so.
        copy_dir: an existing folder (on Drive, say) in which ``<folder's name>/`` receives a copy of every run.

    Raises:
        GuardStop: the whole grid is inert (exit code 2), found before any training.
        UserError: ``folder`` is itself a run, a run folder in it was started with other settings, or as ``fit``.
    """
    folder = Path(folder)
    if (folder / "config.json").exists():
        raise UserError(f"{folder} is a run, and a sweep is a folder of runs: choose another run name.")
    report, like = _before_training(plan, force=force)
    copies = _copies(copy_dir, folder)
    todo = [(setting, seed) for seed in plan.seeds for setting in plan.settings]
    rows: list[Row] = []
    interrupted = False
    try:
        for number, (setting, seed) in enumerate(todo, start=1):
            print(f"{number} of {len(todo)}: {setting.name} seed {seed}{_time_left(rows, len(todo))}", flush=True)
            gc.collect()  # the task before refers to itself, and two of them would not fit on a small GPU
            task = plan.make_task(dataclasses.replace(setting.config, seed=seed))
            run = open_run(task, folder, f"{setting.name}-seed{seed}", copy_dir=copies)
            row = make_row(task, run, setting=setting.name, term=plan.term, like=like)
            if row is None:
                interrupted = True
                break
            rows.append(row)
            del task
            _publish(plan, folder, copies, report, rows, draw=False)  # figures take longer than a small run
    except KeyboardInterrupt:  # between two runs; within one, fit saves and returns
        interrupted = True
    done = _publish(plan, folder, copies, report, rows, draw=True)
    if interrupted:
        print(f"Stopped after {len(rows)} of {len(todo)} runs. Run again to go on.")
    return Swept(folder, done, interrupted)


def _before_training(plan: Plan, *, force: bool) -> tuple[dict[str, Any], Scores]:
    """The head of sweep.json, and metrics to read kept sums by. The guard looks at the grid here."""
    reference, first = plan.settings[:2]
    # What the term needs (a feature network, a second network) is not in the reference, and remarks must name it.
    task = plan.make_task(dataclasses.replace(first.config, seed=plan.seeds[0]))
    task.to(pick_device())
    for module in task.modules.values():
        module.to(pick_device())
    balance = plan.measure(task)
    entries = {setting.name: term_entry(balance(setting.config), plan.term) for setting in plan.settings}
    shares = {setting.name: entries[setting.name].grad_share for setting in plan.settings[1:]}
    guard = InertGrid()
    findings: list[Finding] = []
    for finding in guard.on_grid(plan.term, shares, cure=plan.cure(balance)):
        if not force:
            raise GuardStop(finding, guard.exit_code)
        findings.append(dataclasses.replace(finding, severity="warn"))
        print(findings[-1])
    baselines = {name: task.evaluate(SPLITS[0], predictor).metrics for name, predictor in task.nulls.items()}
    like = {name: metric for theirs in reversed(baselines.values()) for name, metric in theirs.items()}
    head = {
        "stage": task.stage,
        "profile": task.config.profile,
        "reference": reference.name,
        "term": plan.term,
        "settings": {
            setting.name: {
                "config": {k: v for k, v in dataclasses.asdict(setting.config).items() if k != "seed"},
                "value_share": entries[setting.name].value_share,  # on a batch, before training
                "grad_share": entries[setting.name].grad_share,
            }
            for setting in plan.settings
        },
        "seeds": list(plan.seeds),
        "planned": len(plan.settings) * len(plan.seeds),
        "headlines": [name for name in task.headlines if name in like],
        "decided_by": [name for name in task.headlines if name in like and name in plan.decided_by],
        "remarks": list(task.remarks()),
        "data": dict(task.describe_data()),
        "device": environment()["device"],
        "forced": bool(findings),
        "guards": [dataclasses.asdict(finding) for finding in findings],
        "baselines": {
            name: {metric: plain(theirs[metric].value) for metric in task.headlines if metric in theirs}
            for name, theirs in baselines.items()
        },
    }
    return head, like


def _publish(
    plan: Plan, folder: Path, copies: Path | None, head: Mapping[str, Any], rows: Sequence[Row], *, draw: bool
) -> dict[str, Any]:
    """Everything that the rows say so far, on disk."""
    report: dict[str, Any] = {**head, "sweep": folder.name, "rows": [row.record for row in rows]}
    for split in SPLITS:
        scores: dict[str, dict[int, Scores]] = {}
        for row in rows:
            if row.scores:
                scores.setdefault(row.record["setting"], {})[row.record["seed"]] = row.scores[split]
        report[split] = compare(scores, report["reference"], report["headlines"])
    report["spread"] = {split: spreads(report[split], report["headlines"]) for split in SPLITS}
    report["effects"] = {split: effects(report[split], report["spread"][split]) for split in SPLITS}
    best, gates, verdict = plan.judge(report)
    report |= {"best": best, "gates": [dataclasses.asdict(gate) for gate in gates]}
    report["verdict"] = dataclasses.asdict(verdict)
    drawn = list(plan.figures(report)) if draw and report["val"] else []
    with writing(folder):
        save_figures(folder / "figures", drawn)
        with replacing(folder / "sweep.md") as file:
            file.write(as_markdown(report, [name for name, _ in drawn]))
        write_json(folder / "sweep.json", report)
    if copies is not None:
        try:
            for name in ("sweep.json", "sweep.md"):
                shutil.copyfile(folder / name, copies / name)
            shutil.copytree(folder / "figures", copies / "figures", dirs_exist_ok=True)
        except OSError as error:
            print(f"NOTE the sweep's table was not copied to {copies} ({error}); it is complete in {folder}.")
    return report


def _copies(copy_dir: Path | None, folder: Path) -> Path | None:
    """The folder of this sweep's copies; ``copy_dir`` itself is never created, an unmounted Drive has none."""
    if copy_dir is None:
        return None
    if not Path(copy_dir).is_dir():
        raise UserError(f"the folder for copies, {copy_dir}, does not exist: mount Drive or make it, or leave it away.")
    copies = Path(copy_dir) / folder.name
    if copies.resolve() == folder.resolve():
        raise UserError(f"runs cannot be copied to {copy_dir}, where they are written: choose another folder.")
    with writing(copies):
        copies.mkdir(exist_ok=True)
    return copies


def _time_left(rows: Sequence[Row], planned: int) -> str:
    minutes = [row.record["minutes"] for row in rows if row.record["stopped"] is None]
    if not minutes:
        return ""
    return f" (at most about {sum(minutes) / len(minutes) * (planned - len(rows)):.0f} min to go)"
