"""The stage's floor on decaying turbulence: ``python benchmarks/turbulence.py`` (an hour; part of ``make floors``).

Field error alone, the scheduler with several end weights, a static mix, a gradient share, each with every seed; the
end weight is chosen on validation. Beside them two controls that need no spectral loss: a gain for every shell, fitted
after the field-only training, and a model that puts out the change instead of the state. Reports and scores go to
``results/floors/neural_operator``. With ``--work DIR`` a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kept import kept

from nbhelpers.stages.neural_operator.config import Config, simulated
from nbhelpers.stages.neural_operator.cost import measure_cost
from nbhelpers.stages.neural_operator.gain import fit_gain, gain_predictor
from nbhelpers.stages.neural_operator.simulate import simulate
from nbhelpers.stages.neural_operator.sweep import Grid, run_sweep
from nbhelpers.stages.neural_operator.task import OperatorTask
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.metrics import Metric
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report
from nbhelpers.training.run import Run

TO = Path(__file__).resolve().parent / "results/floors/neural_operator"
GRID = Grid(weights=(0.03, 0.05, 0.07), static=(0.05,), shares=(0.25,), seeds=(0, 1))
DEFAULT = "scheduled-0.05"  # the setting that the profile has
PROFILE = "quick"
STEPS = ("step 5", "step 10")  # of the rollouts, that are listed


def scores(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """What the floor is about, of one predictor on one split."""
    found = {name: metrics[name].value for name in ("field_error", "spectrum_error_high", "blow_up_rate")}
    for name in ("rollout_field_error", "rollout_spectrum_error_high"):
        by_step = dict(zip(metrics[name].labels, metrics[name].by_label.tolist(), strict=True))
        found |= {f"{name} {step}": by_step[step] for step in STEPS}
    return found


def trained(run: Run, config: Config, data_dir: Path) -> OperatorTask:
    """The task with the weights of the run's best checkpoint."""
    task = OperatorTask(config, data_dir)
    best = checkpoint.find(run, "best")
    assert best is not None
    checkpoint.load_weights(best, task.modules)
    return task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for data and runs (default: a temporary one)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(GRID.seeds))
    arguments = parser.parse_args()
    work, grid = arguments.work or Path(tempfile.mkdtemp()), dataclasses.replace(GRID, seeds=tuple(arguments.seeds))
    data_dir, config = work / "simulated", Config.for_profile(PROFILE)
    simulate(data_dir, **simulated(PROFILE))
    TO.mkdir(parents=True, exist_ok=True)
    swept = run_sweep(config, grid, data_dir, work / "ablation")
    report = kept(swept.report, data="simulated")
    (TO / "ablation.json").write_text(json.dumps({"repeat": "python benchmarks/turbulence.py"} | report) + "\n")
    for name in ("sweep", "sweep_test"):
        shutil.copyfile(work / f"ablation/figures/{name}.png", TO / f"{name}.png")

    table: dict[str, dict[str, Any]] = {}  # predictor and seed -> split -> scores
    settings = {setting.name: setting.config for setting in grid.settings(config)}
    guards: dict[str, list[str]] = {}
    costs: dict[str, Any] = {}
    for seed in grid.seeds:
        for name, one in settings.items():
            run = Run(work / f"ablation/{name}-seed{seed}")
            task = trained(run, dataclasses.replace(one, seed=seed), data_dir)
            table[f"{name} seed {seed}"] = {split: scores(task.evaluate(split).metrics) for split in ("val", "test")}
            guards[run.name] = [found["name"] for found in json.loads(run.guards_file.read_text())]
            if name == "field-only":
                corrected = gain_predictor(task, fit_gain(task))
                table[f"field-only, gain by shell, seed {seed}"] = {
                    split: scores(task.evaluate(split, corrected).metrics) for split in ("val", "test")
                }
        change = dataclasses.replace(settings["field-only"], predicts="change", seed=seed)
        task = OperatorTask(change, data_dir)
        run = open_run(task, work / "ablation", f"field-only-change-seed{seed}")
        fit(task, run)
        task = trained(run, change, data_dir)
        table[f"field-only, predicts change, seed {seed}"] = {
            split: scores(task.evaluate(split).metrics) for split in ("val", "test")
        }
        # The profile's own run, its whole report beside the field-only one.
        reports = {}
        for name in ("field-only", DEFAULT):
            task = OperatorTask(dataclasses.replace(settings[name], seed=seed), data_dir)
            reference = Run(work / f"ablation/field-only-seed{seed}") if reports else None
            reports[name] = make_report(task, Run(work / f"ablation/{name}-seed{seed}"), reference=reference)
        cost = measure_cost(task, train_seconds=reports[DEFAULT]["train_seconds"])
        costs[f"seed {seed}"] = dataclasses.asdict(cost) | {"conclusion": cost.conclusion, "speed_up": cost.speed_up}
        text = json.dumps(kept(reports[DEFAULT], data="simulated"))
        (TO / f"simulated-{PROFILE}-seed{seed}.json").write_text(text + "\n")
    content = {
        "repeat": "python benchmarks/turbulence.py",
        "what": "scores of every predictor; ratios are to field-only of the same seed and split",
        "best_on_validation": report["best"],
        "gates": report["gates"],
        "guards": guards,
        "scores": table,
        "ratios": ratios(table),
        "cost_at_equal_error": costs,
    }
    text = json.dumps(kept(content, data="simulated"), indent=1)
    (TO / "controls.json").write_text(text + "\n")
    print(text)


def ratios(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Every score over that of field error alone."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, splits in table.items():
        reference = table[f"field-only seed {name.split()[-1]}"]
        found[name] = {
            split: {key: value / reference[split][key] for key, value in mine.items() if key != "blow_up_rate"}
            for split, mine in splits.items()
        }
    return found


if __name__ == "__main__":
    main()
