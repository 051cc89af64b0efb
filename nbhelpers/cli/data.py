"""``nbhelpers data``: list, fetch, verify, simulate, prepare or pack data."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
from pathlib import Path
from typing import Any

from nbhelpers.cli.common import STAGE_HELP, STAGES, simulated_dir, stage_commands
from nbhelpers.core import manifest, runtime
from nbhelpers.core.disk import human_bytes
from nbhelpers.core.errors import UserError

EVENT_STAGE = "perceptual-unet"  # knows how events lie in SEVIR's files
DEFAULT_FACTOR = 4  # from rain to its own block means, as in the rainfall stage's quick profile


def add(commands: Any) -> None:
    data = commands.add_parser("data", help="list, fetch, verify, simulate, prepare or pack data")
    actions = data.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="the data sets that can be fetched")
    listing.add_argument("--json", action="store_true", help="print JSON")
    listing.set_defaults(run=_list)
    for action, run in (("fetch", _fetch), ("verify", _verify)):
        one = actions.add_parser(action, help=f"{action} a data set")
        one.add_argument("name", help="as `data list` prints it, or the path of a manifest")
        one.add_argument("--data-dir", type=Path, help="where its files belong")
        one.set_defaults(run=run)
        if action == "fetch":
            one.add_argument(
                "--only", nargs="+", metavar="FILE", help="some of its files; patterns such as 'vil/2019/*'"
            )
            one.add_argument(
                "--events", type=int, metavar="N", help="N chosen events of SEVIR, in a folder of their own"
            )
    simulate = actions.add_parser("simulate", help="make data for a stage, in the format of the real ones")
    simulate.add_argument("stage", choices=STAGES, metavar="STAGE", help=STAGE_HELP)
    simulate.add_argument("--profile", choices=runtime.PROFILES, help="how much (default: by this machine)")
    simulate.add_argument("--kind", metavar="NAME", help="what to simulate, where the stage has several")
    simulate.add_argument("--data-dir", type=Path, help="an empty or new folder")
    simulate.add_argument("--seed", type=int, default=0)
    simulate.set_defaults(run=_simulate)
    prepare = actions.add_parser("prepare", help="turn data of your own into the layout that a stage reads")
    preparing = prepare.add_subparsers(dest="stage", required=True, metavar="STAGE")
    scenes = preparing.add_parser("super-resolution", help="patches cut from GeoTIFF scenes")
    scenes.add_argument("--from", dest="sources", type=Path, nargs="+", required=True, metavar="PATH", help="scenes")
    scenes.add_argument("--size", type=int, metavar="PIXELS", help="side of a patch (default: as the stage's data)")
    scenes.add_argument("--place", metavar="NAME", help="where all these scenes lie (default: by their georeference)")
    rain = preparing.add_parser("rainfall-cvae", aliases=["rainfall"], help="day files from daily NetCDF")
    _add_rain_flags(rain)
    tiles = preparing.add_parser("tiles", aliases=["sar-grounding"], help="tiles of pairs of S1 and S2 images")
    _add_tile_flags(tiles)
    packing = actions.add_parser("pack", help="write a stage's many small files as a few that are fast to read")
    packing.add_argument("stage", choices=STAGES, metavar="STAGE", help=STAGE_HELP)
    packing.add_argument("--data-dir", type=Path, required=True, metavar="FROM", help="folder with the data")
    for one, run in ((scenes, _cut_scenes), (packing, _pack)):
        one.add_argument(
            "--bands", nargs="+", metavar="BAND", help="such as B02; in the file's order where it has no names"
        )
        one.add_argument("--offset", type=int, metavar="DN", help="to add (default: as the files or their names say)")
        one.set_defaults(run=run)
    for one in (scenes, rain, tiles, packing):
        one.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write")


def _add_rain_flags(parser: argparse.ArgumentParser) -> None:
    files, part = parser.add_argument_group("files"), parser.add_argument_group("which part of them")
    files.add_argument("--rain", type=Path, nargs="+", required=True, metavar="PATH", help="NetCDF, or folders of it")
    files.add_argument("--variable", metavar="NAME", help="the rain in them (default: by its name)")
    files.add_argument("--land", type=Path, metavar="FILE.nc", help="land mask (default: sea is what most days lack)")
    files.add_argument(
        "--predictors", type=Path, metavar="DIR", help="<var>_day_*.nc on a coarse grid (default: means of the rain)"
    )
    files.add_argument("--channels", nargs="+", metavar="VAR", help="predictors to take, such as tas pr huss")
    part.add_argument(
        "--factor", type=int, metavar="N", help="rain pixels in a coarse one, each way (default: 4, or by the grids)"
    )
    part.add_argument("--box", type=float, nargs=4, metavar=("WEST", "SOUTH", "EAST", "NORTH"), help="degrees")
    part.add_argument("--months", type=int, nargs="+", metavar="M", help="such as 12 1 2 (default: all)")
    for split in ("val", "test"):
        part.add_argument(
            f"--years-{split}", type=int, nargs="+", metavar="YEAR", help=f"years of the {split} split; give both"
        )
    parser.set_defaults(run=_prepare_rain)


def _add_tile_flags(parser: argparse.ArgumentParser) -> None:
    what = "BigEarthNet (v2 with metadata.parquet beside it), or GeoTIFFs whose names are equal in both folders"
    parser.add_argument("--s1", type=Path, required=True, metavar="DIR", help=f"S1 images, VV and VH in dB: {what}")
    parser.add_argument("--s2", type=Path, required=True, metavar="DIR", help="S2 images")
    parser.add_argument("--size", type=int, metavar="PIXELS", help="side of a tile (default: whole images)")
    parser.add_argument("--s2-units", choices=("dn", "reflectance"), help="of the S2 images (default: dn)")
    parser.add_argument("--offset", type=int, metavar="DN", help="to add (default: as the files or their names say)")
    parser.add_argument("--block-km", type=float, metavar="KM", help="side of the squares that go whole to a split")
    parser.set_defaults(run=_prepare_tiles)


def _list(arguments: argparse.Namespace) -> int:
    found = [manifest.load_manifest(name) for name in manifest.list_manifests()]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(one) for one in found], indent=2, default=str))
        return 0
    for one in found:
        sizes = [file.bytes for file in one.files]
        known = [size for size in sizes if size is not None]
        size = human_bytes(sum(known)) + (" or more" if len(known) < len(sizes) else "") if known else "size not known"
        print(f"{one.name:22} {one.title}: {len(one.files)} files, {size}")
    for stage in STAGES:
        print(f"{stage:22} simulated: `nbhelpers data simulate {stage}`")
    return 0


def _fetch(arguments: argparse.Namespace) -> int:
    wanted = manifest.load_manifest(arguments.name)
    if arguments.events is not None:
        if arguments.only:
            raise UserError("--only names whole files and --events single events: give one of the two.")
        folder = arguments.data_dir or runtime.workspace().data_dir / f"{wanted.name}-events"
        print(stage_commands(EVENT_STAGE).fetch_events(wanted, folder, arguments.events))
        return 0
    folder = arguments.data_dir or runtime.workspace().data_dir / wanted.name
    for path in manifest.fetch(wanted, folder, only=arguments.only):
        print(path)
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    wanted = manifest.load_manifest(arguments.name)
    states = manifest.verify(wanted, arguments.data_dir or runtime.workspace().data_dir / wanted.name)
    for state in states:
        print(f"{state.status:22} {state.location}")
    return 0 if all(state.ok for state in states) else 2


def _simulate(arguments: argparse.Namespace) -> int:
    profile = arguments.profile or runtime.default_profile()
    simulate = stage_commands(arguments.stage).simulate
    name, asked = arguments.stage, {}
    if arguments.kind is not None:
        if "kind" not in inspect.signature(simulate).parameters:
            raise UserError(f"--kind is {arguments.kind!r}, but {name} simulates data of one kind only: leave it out.")
        name, asked = f"{name}-{arguments.kind}", {"kind": arguments.kind}
    folder = arguments.data_dir or simulated_dir(name, profile)
    print(simulate(folder, profile=profile, seed=arguments.seed, **asked))
    return 0


def _cut_scenes(arguments: argparse.Namespace) -> int:
    cut_scenes = stage_commands(arguments.stage).cut_scenes
    print(cut_scenes(arguments.sources, arguments.to, **_given(arguments, "bands", "offset", "size", "place")))
    return 0


def _prepare_rain(arguments: argparse.Namespace) -> int:
    from nbhelpers.stages.rainfall_cvae import prepare  # no model is needed, nor what it imports

    years = {"val": arguments.years_val, "test": arguments.years_test}
    if (years["val"] is None) != (years["test"] is None):
        raise UserError("one of --years-val and --years-test is given: give both (all other years are for training).")
    options = _given(arguments, "factor", "box", "months", "variable", "land", "channels")
    options["years"] = years if arguments.years_val else None
    if arguments.predictors is not None:
        print(prepare.prepare_downscaling(arguments.to, arguments.predictors, arguments.rain, **options))
    elif arguments.channels is not None:
        raise UserError("--channels chooses among the files of --predictors DIR: give that folder too.")
    else:
        print(prepare.prepare_rain(arguments.to, arguments.rain, **{"factor": DEFAULT_FACTOR, **options}))
    return 0


def _prepare_tiles(arguments: argparse.Namespace) -> int:
    from nbhelpers.stages.sar_grounding.prepare import prepare_tiles  # no model is needed, nor what it imports

    options = _given(arguments, "size", "s2_units", "offset", "block_km")
    print(prepare_tiles(arguments.to, s1=arguments.s1, s2=arguments.s2, **options))
    return 0


def _pack(arguments: argparse.Namespace) -> int:
    pack = _offered(arguments.stage, "pack", "pack")
    print(pack(arguments.data_dir, arguments.to, **_given(arguments, "bands", "offset")))
    return 0


def _given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """What was asked for; the rest is the stage's default."""
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _offered(stage: str, action: str, function: str) -> Any:
    """What the stage does for ``data ACTION``; UserError where it has nothing of the kind."""
    commands = stage_commands(stage)
    if not hasattr(commands, function):
        offering = [name for name in STAGES if hasattr(stage_commands(name), function)]
        raise UserError(f"there is nothing to {action} for {stage}: `data {action}` is for {', '.join(offering)}.")
    return getattr(commands, function)
