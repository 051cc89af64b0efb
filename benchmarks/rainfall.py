"""The stage's floors on simulated weather and real rain: ``python benchmarks/rainfall.py`` (hours; in ``make floors``).

``simulated``: the profile's model (hurdle_gamma) on simulated weather, and the same model without a latent as its
control. ``composite``: the composite loss with and without weight on extremes, and with that weight diluted, on the
same weather. ``cordex``: the same likelihood with a lighter tail on rain of a regional climate model, predicted from
its own block means.
Reports go to ``results/floors/rainfall_cvae``; ``floors-quick.json`` and ``floors-quick.md`` list every floor with its
numbers by seed, of all reports that are there. The command fails if a floor is missed or not shown, or if a guard
speaks: a healthy run raises none. With ``--work DIR`` a second call goes on where the first stopped; with ``--rescore``
it trains nothing, and only makes the reports of the runs there once more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
from kept import kept

from nbhelpers.stages.rainfall_cvae.config import SIMULATED, Config, armed_after
from nbhelpers.stages.rainfall_cvae.prepare import prepare_rain
from nbhelpers.stages.rainfall_cvae.simulate import simulate
from nbhelpers.stages.rainfall_cvae.sweep import Grid, acting_weights, run_sweep
from nbhelpers.stages.rainfall_cvae.sweep_verdict import DILUTED, TITLES, dilution, point_gates, points
from nbhelpers.stages.rainfall_cvae.task import RainfallTask
from nbhelpers.stages.rainfall_cvae.verdict import steady_gate
from nbhelpers.training import checkpoint
from nbhelpers.training.fit import fit
from nbhelpers.training.guards.watch import read_guards
from nbhelpers.training.history import read_rows
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report
from nbhelpers.training.run import Run
from nbhelpers.training.sweep_text import is_sweep, read_sweep
from nbhelpers.training.tables import md_table
from nbhelpers.training.task import Gate

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("NBHELPERS_REAL_DATA", ROOT / "../shared/data"))
CORDEX = REAL_DATA / "rain/CORDEX_Iberia_pr.npz"
TO = ROOT / "benchmarks/results/floors/rainfall_cvae"
LEAST_SEEDS = {"simulated": 3, "composite": 3, "cordex": 3}
# Of the model, by data: chosen on validation. A winter's coarse rain leaves little open, for which the tail of a GPD is
# too heavy (P99.9 15 % too high on validation, CRPS 0.389 instead of 0.380), and there is a quarter of the days to
# learn from in an epoch. All of the few validation days are needed to see how far the error of the whole map varies.
SETTINGS: dict[str, dict[str, Any]] = {
    "cordex": {"tail": "gamma", "epochs": 40, "warmup_epochs": 8, "eval_days": None},
}
MINUTES = 10.0  # that a run of `quick` may train on two cores
CONTROL = "control"  # the simulated runs without a latent
MARKS = {True: "met", False: "**missed**", None: "not shown"}
Floors = list[dict[str, Any]]  # floor; what was found by seed, split or run; met (None: too few seeds or events)


def write_netcdf(source: Path, path: Path) -> Path:
    """The real sample as a NetCDF-4 file, as ``data prepare`` takes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with np.load(source, allow_pickle=False) as sample, netCDF4.Dataset(path, "w") as file:
        file.setncatts({"title": "CORDEX, Iberia, winters", "source_id": "regional climate model output"})
        axes = {"rlat": ("lat", "grid_latitude"), "rlon": ("lon", "grid_longitude")}
        days = sample["date"].astype("datetime64[D]").astype(int)
        file.createDimension("time", len(days))
        file.createVariable("time", "f8", ("time",)).setncatts(
            {"units": "days since 1970-01-01", "calendar": "standard"}
        )
        file["time"][:] = days
        for name, (key, standard) in axes.items():
            file.createDimension(name, len(sample[key]))
            file.createVariable(name, "f8", (name,)).setncatts({"standard_name": standard, "units": "degrees"})
            file[name][:] = sample[key]
        file.createVariable("pr", "f4", ("time", *axes), zlib=True).units = "mm/day"
        file["pr"][:] = sample["pr"]
    return path


def data_folder(name: str, profile: str, work: Path) -> Path:
    """The day files of a data set, made by the first call."""
    if name != "cordex":
        much = SIMULATED[profile]
        folder = work / f"weather-{profile}"
        return simulate(folder, **much, seed=0, progress=False)
    folder = work / "cordex"
    if not folder.exists():
        prepare_rain(folder, [write_netcdf(CORDEX, work / "netcdf/pr_day_CORDEX-Iberia.nc")], factor=4)
    return folder


def selection(run: Run) -> dict[str, Any]:
    """Where the best checkpoint came from, and whether the validation loss was steady."""
    config, rows = run.read_config()["config"], read_rows(run.history_file)
    best, metric = checkpoint.find(run, "best"), f"val_{config['early_stopping_metric']}"
    warm_up, steady = armed_after(config), steady_gate({"config": config}, rows)
    chosen = next((row["epoch"] for row in rows if best is not None and row["step"] == best.step), None)
    found = {
        "armed_after": warm_up,
        "epochs": len(rows),
        "best_epoch": chosen,
        # Without arming, this epoch would have been chosen, as far as the run goes.
        "least_epoch": min(rows, key=lambda row: row[metric])["epoch"] if rows else None,
        "gates": [
            Gate(
                "best checkpoint and end of training after the warm-up",
                chosen is not None and chosen > warm_up and len(rows) > warm_up,
                f"epoch {chosen} of {len(rows)}, armed after {warm_up}",
            )
        ],
    }
    found["gates"] += [steady] if steady is not None else []
    return found | {"gates": [dataclasses.asdict(gate) for gate in found["gates"]]}


def train(name: str, config: Config, data_dir: Path, work: Path, *, rescore: bool, against: str = "") -> Run | None:
    """One run, trained or taken up, and its report with the control's beside; None: it is not there to be rescored."""
    task = RainfallTask(config, data_dir)
    run = open_run(task, work / "runs", name)
    if not rescore:
        if fit(task, run).interrupted:
            raise KeyboardInterrupt
    elif checkpoint.find(run, "best") is None:
        print(f"{run.name} has not been trained: left out", file=sys.stderr)
        return None
    reference = Run(work / "runs" / against) if against and Run(work / "runs" / against).report_file.exists() else None
    make_report(task, run, reference=reference)
    return run


def write(folder: Path, name: str, content: Mapping[str, Any], *, data: str) -> None:
    """A report as it is kept."""
    text = json.dumps(kept(dict(content), data=data))
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def single_runs(name: str, seed: int, data_dir: Path, arguments: argparse.Namespace) -> Iterator[Run | None]:
    """The runs of one seed; on simulated weather the control is first, so that the other is compared with it."""
    work, profile, rescore = arguments.work, arguments.profile, arguments.rescore
    config = Config.for_profile(profile, seed=seed, **SETTINGS.get(name, {}))
    against = ""
    if name == "simulated":
        against = f"{CONTROL}-{profile}-seed{seed}"
        yield train(against, config.replace({"d_z": 0}, source="the benchmark"), data_dir, work, rescore=rescore)
    yield train(f"{name}-{profile}-seed{seed}", config, data_dir, work, rescore=rescore, against=against)


def composite(data_dir: Path, arguments: argparse.Namespace) -> None:
    """The sweep of the composite loss, its report and pictures as they are kept."""
    folder, to = arguments.work / f"composite-{arguments.profile}", arguments.to
    if arguments.rescore and not (is_sweep(folder) and _is_whole(read_sweep(folder))):
        print(f"{folder.name} has not been trained to its end: left out", file=sys.stderr)
        return
    config = Config.for_profile(arguments.profile, likelihood="tail_mae")
    swept = run_sweep(config, Grid(seeds=tuple(arguments.seeds)), data_dir, folder)
    if swept.interrupted:
        raise KeyboardInterrupt
    runs = {run.name: run for folders in swept.finished.values() for run in map(Run, folders)}
    beside = {
        "acting_weights": acting_weights(folder, swept.report["rows"]),
        "selection": {name: selection(run) for name, run in runs.items()},
        "guards_by_run": {name: [found["name"] for found in read_guards(run)] for name, run in runs.items()},
    }
    write(to, f"composite-{arguments.profile}", {**swept.report, **beside}, data="simulated")
    for name in ("sweep", "sweep_test"):
        shutil.copyfile(folder / f"figures/{name}.png", to / f"composite-{arguments.profile}-{name}.png")


def _is_whole(report: Mapping[str, Any]) -> bool:
    return len(report["rows"]) == report["planned"]


def run_floors(reports: Sequence[Mapping[str, Any]], least: int, *, minutes: bool) -> Floors:
    """Every gate of the runs, by seed; one that a seed misses is missed."""
    found: dict[str, dict[str, Gate]] = {}
    for report in reports:
        gates = [Gate(**gate) for gate in report["gates"]]
        names = {gate.name for gate in gates}
        gates += [Gate(**gate) for gate in report["selection"]["gates"] if gate["name"] not in names]
        if minutes:
            spent = report["train_seconds"] / 60
            gates.append(Gate(f"at most {MINUTES:g} min of training", spent <= MINUTES, f"{spent:.1f} min"))
        for gate in gates:
            found.setdefault(gate.name, {})[str(report["config"]["seed"])] = gate
    return [_floor(name, by_seed, least if len(by_seed) < least else 0) for name, by_seed in found.items()]


def _floor(name: str, gates: Mapping[str, Gate], missing: int = 0) -> dict[str, Any]:
    """One floor over its gates; a miss is a miss with however few seeds, and only enough of them show that it holds."""
    passed = [gate.passed for gate in gates.values()]
    met = False if False in passed else None if missing or None in passed else True
    return {"floor": name, "found": {key: gate.value for key, gate in gates.items()}, "met": met}


def composite_floors(report: Mapping[str, Any]) -> Floors:
    """The floor of each share on both splits, and how all runs of the sweep were selected."""
    least = LEAST_SEEDS["composite"] if len(report["seeds"]) < LEAST_SEEDS["composite"] else 0
    found = []
    for split, title in TITLES.items():
        for point in points(report, split):
            if point.name.startswith("share"):
                found += [_floor(gate.name, {title: gate}, least) for gate in point_gates(report, point, split)]
    if not found:
        found.append({"floor": "a share of the gradient for extremes", "found": {}, "met": None})
    names = dict.fromkeys(gate["name"] for one in report["selection"].values() for gate in one["gates"])
    for name in names:
        gates = {
            run: Gate(**gate)
            for run, one in report["selection"].items()
            for gate in one["gates"]
            if gate["name"] == name
        }
        found.append(_floor(f"all runs of the sweep: {name}", gates))
    return found


def composite_beside(report: Mapping[str, Any]) -> list[str]:
    """What the other settings of the sweep did, a sentence each."""
    said = [f"{point}, {title}." for split, title in TITLES.items() for point in points(report, split)]
    return [*said, *dilution(report, report["acting_weights"])]


def line(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary says of a run."""
    names = ("crps", "mae_all", "mae_tail", "p99_ratio", "p999_ratio")
    beside = {null: theirs["crps"]["value"] for null, theirs in report["baselines"].items()}
    return {
        "run": report["run"],
        "minutes": round(report["train_seconds"] / 60, 1),
        "verdict": report["verdict"]["name"],
        "guards": [found["name"] for found in report["guards"]],
        **{name: report["metrics"][name]["value"] for name in names},
        "crps_beside": beside,
        **{name: value for name, value in report["selection"].items() if name != "gates"},
    }


def write_summary(folder: Path, profile: str) -> tuple[list[str], list[str]]:
    """``floors-<profile>.json`` and ``.md`` of all reports in the folder.

    Returns:
        The floors that are missed or not shown, and the runs in which a guard spoke.
    """
    content: dict[str, Any] = {"repeat": f"python benchmarks/rainfall.py --profile {profile}", "data": {}}
    alarms: list[str] = []
    for name in (*LEAST_SEEDS, CONTROL):
        if name == "composite":
            path = folder / f"composite-{profile}.json"
            if path.exists():
                report = json.loads(path.read_text(encoding="utf-8"))
                content["data"][name] = {"floors": composite_floors(report), "beside": composite_beside(report)}
                content["data"][name] |= {"verdict": report["verdict"], "runs": report["guards_by_run"]}
                alarms += [run for run, guards in report["guards_by_run"].items() if guards and DILUTED not in run]
            continue
        paths = sorted(folder.glob(f"{name}-{profile}-seed*.json"))
        reports = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        if reports:
            floors = run_floors(reports, LEAST_SEEDS.get(name, 1), minutes=name == "simulated" and profile == "quick")
            content["data"][name] = {"floors": floors, "runs": [line(report) for report in reports]}
            alarms += [report["run"] for report in reports if report["guards"]]
    for name in LEAST_SEEDS:
        content["data"].setdefault(name, {"floors": [_floor("all floors of this data", {}, 1)], "runs": []})
    (folder / f"floors-{profile}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / f"floors-{profile}.md").write_text(as_markdown(content["data"], profile), encoding="utf-8")
    missed = [
        f"{name}: {floor['floor']} ({', '.join(f'{key} {value}' for key, value in floor['found'].items())})"
        for name, found in content["data"].items()
        for floor in found["floors"]
        if floor["met"] is not True and name != CONTROL
    ]
    return missed, alarms


def as_markdown(data: Mapping[str, Mapping[str, Any]], profile: str) -> str:
    """The floors as tables, one a data set."""
    what = {
        "simulated": "Simulated weather: prior samples of hurdle_gamma",
        "composite": "Simulated weather: the composite loss",
        "cordex": "Rain of a regional climate model (CORDEX, Iberia, winters), X = 4 x 4 block means; "
        + ", ".join(f"{key} {value}" for key, value in SETTINGS["cordex"].items()),
        CONTROL: "Beside: the control without a latent, simulated weather (no floors)",
    }
    all_ = [floor["met"] for name, found in data.items() if name != CONTROL for floor in found["floors"]]
    lines = [f"# Floors of rainfall-cvae, profile {profile}", "", f"{all_.count(True)} of {len(all_)} floors are met."]
    for name, found in data.items():
        lines += ["", f"## {what[name]}", ""]
        if "beside" in found:
            rows = [["floor", "found", "met"]]
            for floor in found["floors"]:
                rows.append([floor["floor"], _values(floor), MARKS[floor["met"]]])
            lines += [md_table(rows), "", *(f"- {said}" for said in found["beside"])]
            lines.append(f"- Verdict: {found['verdict']['name']}. {found['verdict']['meaning']}")
            continue
        seeds = sorted({seed for floor in found["floors"] for seed in floor["found"]}, key=int)
        rows = [["floor", *(f"seed {seed}" for seed in seeds), "met"]]
        for floor in found["floors"]:
            rows.append([floor["floor"], *(floor["found"].get(s, "–") for s in seeds), MARKS[floor["met"]]])
        lines.append(md_table(rows))
        for one in found["runs"]:
            guards = f", guards: {', '.join(one['guards'])}" if one["guards"] else ""
            lines.append(f"\n{one['run']}: {one['minutes']} min, verdict: {one['verdict']}{guards}")
    return "\n".join(lines) + "\n"


def _values(floor: Mapping[str, Any]) -> str:
    """What was found; of a floor that many runs meet, their number."""
    found = floor["found"]
    if len(found) == 1:
        return next(iter(found.values()))
    return f"{len(found)} runs" if floor["met"] else "; ".join(f"{key}: {value}" for key, value in found.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=list(SIMULATED), default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", choices=[*LEAST_SEEDS, "all"], nargs="+", default=["all"])
    parser.add_argument("--work", type=Path, help="folder for data and runs (default: a temporary one)")
    parser.add_argument("--to", type=Path, default=TO)
    parser.add_argument("--rescore", action="store_true", help="train nothing: score the runs under --work once more")
    arguments = parser.parse_args()
    if arguments.rescore and arguments.work is None:
        parser.error("--rescore needs --work, the folder of the runs to score")
    arguments.work = arguments.work or Path(tempfile.mkdtemp())
    arguments.to.mkdir(parents=True, exist_ok=True)
    wanted = list(LEAST_SEEDS) if "all" in arguments.data else arguments.data
    if "cordex" in wanted and not CORDEX.exists():
        parser.error(f"{CORDEX} is not there: set NBHELPERS_REAL_DATA, or leave cordex away (--data)")
    singles = {name: data_folder(name, arguments.profile, arguments.work) for name in wanted if name != "composite"}
    for seed in arguments.seeds:
        for name, folder in singles.items():
            for run in single_runs(name, seed, folder, arguments):
                if run is not None:
                    report = json.loads(run.report_file.read_text(encoding="utf-8")) | {"selection": selection(run)}
                    write(arguments.to, run.name, report, data=name)
                    write_summary(arguments.to, arguments.profile)
                    print(json.dumps(line(report)), flush=True)
    if "composite" in wanted:
        composite(data_folder("composite", arguments.profile, arguments.work), arguments)
    missed, alarms = write_summary(arguments.to, arguments.profile)
    print((arguments.to / f"floors-{arguments.profile}.md").read_text(encoding="utf-8"))
    if alarms:
        print(f"guards spoke in {', '.join(alarms)}: a false alarm, or a run that is not healthy", file=sys.stderr)
    for sentence in missed:
        print(f"floor missed or not shown: {sentence}", file=sys.stderr)
    return 1 if alarms or missed else 0


if __name__ == "__main__":
    sys.exit(main())
