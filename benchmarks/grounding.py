"""The floors of SAR grounding: ``python benchmarks/grounding.py`` (about 40 minutes; part of ``make floors``).

``simulated``: the profile's model on simulated scenes, scored on blocks that it never saw, and the same model without
SAR as its reference, paired over blocks. ``chance``: what the agreement with the SAR image is for unrelated pairs and
for white noise. ``real``: the true pairs of BigEarthNet and of TerraMind's examples against shuffled ones, and on each
of the two a few epochs from the files to GeoTIFFs, which show that the way is open and not how good the model gets.
Reports go to
``results/floors/sar_grounding``; ``floors-quick.json`` and ``floors-quick.md`` list every floor with its numbers, of
all reports that are there. The command fails if a floor is missed or not shown, or if a guard speaks on simulated
scenes: a healthy run raises none. With ``--work DIR`` a second call goes on where the first stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import rasterio
from kept import kept
from sar_pairs import chance_gates, exceptions, pairs_gate, real_pairs

from nbhelpers.stages.sar_grounding.config import SIMULATED, Config
from nbhelpers.stages.sar_grounding.layout import About
from nbhelpers.stages.sar_grounding.opt_v3_files import ForecastOptions
from nbhelpers.stages.sar_grounding.predict import write_forecasts
from nbhelpers.stages.sar_grounding.prepare import prepare_tiles
from nbhelpers.stages.sar_grounding.simulate import simulate
from nbhelpers.stages.sar_grounding.task import GroundingTask
from nbhelpers.stages.sar_grounding.tiles import open_tiles
from nbhelpers.training.fit import fit
from nbhelpers.training.history import read_rows
from nbhelpers.training.metrics import Metric, paired_difference
from nbhelpers.training.opening import open_run
from nbhelpers.training.report import make_report
from nbhelpers.training.run import Run
from nbhelpers.training.tables import md_table
from nbhelpers.training.task import Gate

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = Path(os.environ.get("NBHELPERS_REAL_DATA", ROOT / "../shared/data"))
WEIGHTS = REAL_DATA / "weights/squeezenet1_1_caffe_features.pth"
TO = ROOT / "benchmarks/results/floors/sar_grounding"
# Folders of S1 and of S2 images under REAL_DATA.
REAL = {
    "bigearthnet": ("bigearthnet/BigEarthNet-S1", "bigearthnet/BigEarthNet-S2"),
    "s1s2_tiles": ("s1s2_tiles/S1RTC", "s1s2_tiles/S2L2A"),
}
REAL_SIZE = 96  # pixels of a tile, so that both sets are of one size
# A few dozen steps on the few tiles of a set, too few for an average of weights.
REAL_CHANGES = {"epochs": 20, "batch_size": 2, "ema_decay": 0.0}
LEAST_SEEDS = {"simulated": 3, "chance": 3, "real": 1}
CONTROL = "control"  # the simulated runs without SAR
MINUTES = 10.0  # that a run of `quick` may train on two cores
MARKS = {True: "met", False: "**missed**", None: "not shown"}
SCORES = ("psnr", "sam", "sar_agreement")
Floors = list[dict[str, Any]]  # floor; what was found by seed or data set; met (None: too few seeds or places)


def settings(profile: str, seed: int, **changes: Any) -> Config:
    return Config.for_profile(profile, seed=seed, lpips_weights=str(WEIGHTS), **changes)


def trained(
    name: str, config: Config, data_dir: Path, work: Path, against: str = ""
) -> tuple[GroundingTask, dict[str, Any]]:
    """One run, trained or taken up, and its report; ``against`` is the run that it is compared with."""
    task = GroundingTask(config, data_dir)
    run = open_run(task, work / "runs", name)
    if fit(task, run).interrupted:
        raise KeyboardInterrupt
    return task, make_report(task, run, reference=Run(work / "runs" / against) if against else None)


def simulated_runs(seed: int, data_dir: Path, arguments: argparse.Namespace) -> None:
    """The control and then the model of one seed; their reports are written as they come."""
    profile, work = arguments.profile, arguments.work
    control, name = f"{CONTROL}-{profile}-seed{seed}", f"simulated-{profile}-seed{seed}"
    scores = []
    for run, config, against in (
        (control, settings(profile, seed, use_sar=False), ""),
        (name, settings(profile, seed), control),
    ):
        task, report = trained(run, config, data_dir, work, against)
        scores.append(task.evaluate("test").metrics["psnr"])
        if against:
            report["gates"].append(asdict(control_gate(*scores)))
        write(arguments, run, report, data="simulated")
        print(json.dumps(line(report)), flush=True)


def control_gate(without: Metric, with_sar: Metric) -> Gate:
    """Against the same model without SAR, paired over blocks, which two reports cannot be."""
    found = paired_difference(with_sar, without)
    value = f"{found['value']:+.2f} dB [{found['ci95'][0]:+.2f}, {found['ci95'][1]:+.2f}]"
    return Gate("that of the same model without SAR, paired over blocks, beaten in PSNR", found["is_better"], value)


def real_runs(arguments: argparse.Namespace) -> None:
    """Both data sets from their files to GeoTIFFs, and their pairs."""
    seed, data = arguments.seeds[0], {}
    for title, (s1, s2) in REAL.items():
        folder = arguments.work / title
        if not folder.exists():
            print(prepare_tiles(folder, s1=REAL_DATA / s1, s2=REAL_DATA / s2, size=REAL_SIZE), flush=True)
        name = f"{title}-{arguments.profile}-seed{seed}"
        task, report = trained(name, settings(arguments.profile, seed, **REAL_CHANGES), folder, arguments.work)
        rows = read_rows(arguments.work / "runs" / name / "history.csv")
        write(arguments, name, report | {"end_to_end": asdict(end_to_end(task, report, rows))}, data=title)
        print(json.dumps(line(report)), flush=True)
        data[title] = task.tiles
    found = real_pairs(data)
    content = {
        "gates": [asdict(pairs_gate(found))],
        "beside": exceptions(found),
        "pairs": [asdict(one) for one in found],
    }
    write(arguments, f"real-pairs-{arguments.profile}", content, data="real")


def end_to_end(task: GroundingTask, report: Mapping[str, Any], rows: list[dict[str, Any]]) -> Gate:
    """Whether a run that was prepared, trained and scored also predicts, where the tiles lie."""
    made = report["checkpoint"]
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "opt_v3"
        n = write_forecasts(
            task, to, split="test", checkpoint=made["sha256"], step=made["step"], run=report["run"],
            options=ForecastOptions(format="geotiff"),
        )  # fmt: skip
        right = [lies_right(path, task.tiles.about[path.stem]) for path in sorted(to.glob("*.tif"))]
    before, after = (one["psnr"]["value"] for one in (report["baselines"]["opt_v2"], report["metrics"]))
    finite = all(math.isfinite(row["train_total"]) for row in rows)
    value = (
        f"{len(task.tiles.split['train'])} training tiles, {len(rows)} epochs, opt_v2 {before:.2f} and opt_v3 "
        f"{after:.2f} dB, {sum(right)} of {n} GeoTIFFs in place"
    )
    return Gate("prepared, trained, scored, predicted in place", finite and n > 0 and right == [True] * n, value)


def lies_right(path: Path, about: About) -> bool:
    """Whether a GeoTIFF lies where its tile lies."""
    with rasterio.open(path) as file:
        same = about.transform is not None and file.transform.almost_equals(rasterio.Affine(*about.transform))
        return bool(same and file.crs == rasterio.CRS.from_user_input(about.crs))


def write(arguments: argparse.Namespace, name: str, content: Mapping[str, Any], *, data: str) -> None:
    """A report as it is kept, and the summary with it."""
    text = json.dumps(kept(dict(content), data=data)).replace(str(arguments.work), "WORK")
    (arguments.to / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    write_summary(arguments.to, arguments.profile)


def line(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the summary says of a run."""
    rows = {"opt_v3": report["metrics"], **report["baselines"]}
    return {
        "run": report["run"],
        "minutes": round(report["train_seconds"] / 60, 1),
        "verdict": report["verdict"]["name"],
        "guards": [found["name"] for found in report["guards"]],
        **{name: {row: rounded(scores[name]["value"]) for row, scores in rows.items()} for name in SCORES},
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def floors(gates: Iterable[tuple[str, Mapping[str, Any]]], least: int) -> Floors:
    """Every gate by seed or data set: one miss is a miss, and only ``least`` of them show that it holds."""
    by_name: dict[str, dict[str, Gate]] = {}
    for key, gate in gates:
        by_name.setdefault(gate["name"], {})[key] = Gate(**gate)
    found = []
    for name, by_key in by_name.items():
        passed = [gate.passed for gate in by_key.values()]
        met = False if False in passed else None if None in passed or len(passed) < least else True
        found.append({"floor": name, "found": {key: gate.value for key, gate in by_key.items()}, "met": met})
    return found


def minutes_gate(report: Mapping[str, Any]) -> dict[str, Any]:
    spent = report["train_seconds"] / 60
    return asdict(Gate(f"at most {MINUTES:g} min of training", spent <= MINUTES, f"{spent:.1f} min"))


def write_summary(folder: Path, profile: str) -> tuple[list[str], list[str]]:
    """``floors-<profile>.json`` and ``.md`` of all reports in the folder.

    Returns:
        The floors that are missed or not shown, and the simulated runs in which a guard spoke.
    """

    def read(pattern: str) -> dict[str, dict[str, Any]]:
        """Reports by seed."""
        paths = sorted(folder.glob(pattern))
        return {path.stem.rpartition("seed")[2]: json.loads(path.read_text(encoding="utf-8")) for path in paths}

    data: dict[str, dict[str, Any]] = {}
    runs = {name: read(f"{name}-{profile}-seed*.json") for name in ("simulated", CONTROL, "chance", *REAL)}
    if models := runs["simulated"]:
        gates = [(f"seed {seed}", gate) for seed, one in models.items() for gate in one["gates"]]
        if profile == "quick":
            gates += [(f"seed {seed}", minutes_gate(one)) for seed, one in models.items()]
        both = [*models.values(), *runs[CONTROL].values()]
        data["simulated"] = {"floors": floors(gates, LEAST_SEEDS["simulated"]), "runs": [line(one) for one in both]}
    if measured := runs["chance"]:
        gates = [(f"seed {seed}", gate) for seed, one in measured.items() for gate in one["gates"]]
        data["chance"] = {"floors": floors(gates, LEAST_SEEDS["chance"])}
    real = [(title, one) for title in REAL for one in runs[title].values()]
    pairs = read(f"real-pairs-{profile}.json").values()
    if real or pairs:
        gates = [("both sets", gate) for one in pairs for gate in one["gates"]]
        gates += [(title, one["end_to_end"]) for title, one in real]
        beside = [sentence for one in pairs for sentence in one["beside"]]
        found = floors(gates, LEAST_SEEDS["real"])
        data["real"] = {"floors": found, "runs": [line(one) for _, one in real], "beside": beside}
    content = {"repeat": f"python benchmarks/grounding.py --profile {profile}", "data": data}
    (folder / f"floors-{profile}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / f"floors-{profile}.md").write_text(as_markdown(data, profile), encoding="utf-8")
    missed = [
        f"{name}: {floor['floor']} ({', '.join(f'{key} {value}' for key, value in floor['found'].items())})"
        for name, found in data.items()
        for floor in found["floors"]
        if floor["met"] is not True
    ]
    spoken = [one["run"] for name in ("simulated", CONTROL) for one in runs[name].values() if one["guards"]]
    return missed, spoken


def as_markdown(data: Mapping[str, Mapping[str, Any]], profile: str) -> str:
    """The floors as tables, one a data set."""
    what = {
        "simulated": "Simulated scenes, held-out blocks",
        "chance": "What agreement with the SAR image is by chance",
        "real": "Real pairs: BigEarthNet (4 patches) and TerraMind's examples (3 scenes)",
    }
    all_ = [floor["met"] for found in data.values() for floor in found["floors"]]
    lines = [f"# Floors of sar-grounding, profile {profile}", "", f"{all_.count(True)} of {len(all_)} floors are met."]
    for name, found in data.items():
        keys = list(dict.fromkeys(key for floor in found["floors"] for key in floor["found"]))
        rows = [["floor", *keys, "met"]]
        for floor in found["floors"]:
            rows.append([floor["floor"], *(floor["found"].get(key, "–") for key in keys), MARKS[floor["met"]]])
        lines += ["", f"## {what[name]}", "", md_table(rows)]
        said = [*found.get("beside", ())]
        for one in found.get("runs", ()):
            guards = f", guards: {', '.join(one['guards'])}" if one["guards"] else ""
            said.append(f"{one['run']}: {one['minutes']} min, verdict: {one['verdict']}{guards}")
        lines += ["", *(f"- {sentence}" for sentence in said)] if said else []
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=("smoke", "quick"), default="quick")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", choices=list(LEAST_SEEDS), nargs="+", default=list(LEAST_SEEDS))
    parser.add_argument("--work", type=Path, help="folder for data and runs (default: a temporary one)")
    parser.add_argument("--to", type=Path, default=TO)
    arguments = parser.parse_args()
    arguments.work = (arguments.work or Path(tempfile.mkdtemp())).resolve()
    arguments.to.mkdir(parents=True, exist_ok=True)
    absent = [name for pair in REAL.values() for name in pair if not (REAL_DATA / name).is_dir()]
    if "real" in arguments.data and absent:
        parser.error(f"{REAL_DATA / absent[0]} is not there: set NBHELPERS_REAL_DATA, or leave real away (--data)")
    if not WEIGHTS.is_file():
        parser.error(f"{WEIGHTS}, the weights of LPIPS, are not there: set NBHELPERS_REAL_DATA")
    scenes = arguments.work / f"scenes-{arguments.profile}"
    if set(arguments.data) & {"simulated", "chance"}:
        simulate(scenes, **SIMULATED[arguments.profile], seed=0, progress=False)
    if "chance" in arguments.data:
        tiles = open_tiles(scenes)
        for seed in arguments.seeds:
            content = {"seed": seed, "gates": chance_gates(tiles, seed)}
            write(arguments, f"chance-{arguments.profile}-seed{seed}", content, data="simulated")
    if "real" in arguments.data:
        real_runs(arguments)
    if "simulated" in arguments.data:
        for seed in arguments.seeds:
            simulated_runs(seed, scenes, arguments)
    missed, alarms = write_summary(arguments.to, arguments.profile)
    print((arguments.to / f"floors-{arguments.profile}.md").read_text(encoding="utf-8"))
    if alarms:
        print(f"guards spoke in {', '.join(alarms)}: a false alarm, or a run that is not healthy", file=sys.stderr)
    for sentence in missed:
        print(f"floor missed or not shown: {sentence}", file=sys.stderr)
    return 1 if alarms or missed else 0


if __name__ == "__main__":
    sys.exit(main())
