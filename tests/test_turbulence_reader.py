"""Reading sets of simulations: folders of our own and of the published kind, MATLAB files, the cache, and faults."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import turbulence
from turbulence import RECORD, flow, vorticity, write_matlab, write_own, write_published

from nbhelpers.core.errors import UserError
from nbhelpers.stages.neural_operator.canonical import SETS
from nbhelpers.stages.neural_operator.data import Collection, FrameCache, open_collection
from nbhelpers.stages.neural_operator.matlab import BLOCK_BYTES
from nbhelpers.stages.neural_operator.split import split_simulations

BOTH = ("velocity", "pressure")


def refused(act: Callable[[], object]) -> str:
    """The one sentence of the UserError that ``act`` must end in."""
    with pytest.raises(UserError) as caught:
        act()
    said = str(caught.value)
    assert "\n" not in said
    return said


def disc(shape: tuple[int, int], row: int, column: int, radius: float = 2.5) -> np.ndarray:
    y, x = np.indices(shape)
    return (y - row) ** 2 + (x - column) ** 2 < radius**2


# --- our own layout ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(128, 64), (48, 40), (9, 15)])
def test_own_set_is_read_as_written_whatever_the_shape(tmp_path: Path, shape: tuple[int, int]) -> None:
    write_own(tmp_path, 3, shape=shape, n_frames=3)
    found = open_collection(tmp_path, fields=BOTH)
    assert found.channels == ("velocity_x", "velocity_y", "pressure") and found.shape == shape
    assert (found.facts.name, found.facts.kind) == ("decaying", "own")
    assert found.facts.lengths == (1.0, 2.0) and found.facts.periodic and found.facts.frame_gap == 0.5
    assert found.facts.simulated and [one.name for one in found.simulations] == [f"sim_{k:06d}" for k in range(3)]
    made = flow(1, shape=shape, n_frames=3)
    frames = found.read(found.simulations[1], [2, 0])
    assert frames.dtype == np.float32 and frames.shape == (2, 3, *shape)
    np.testing.assert_array_equal(frames[:, :2], made["velocity"][[2, 0]])
    np.testing.assert_array_equal(frames[:, 2], made["pressure"][[2, 0]])


def test_fields_come_in_the_order_asked_for(tmp_path: Path) -> None:
    write_own(tmp_path)
    found = open_collection(tmp_path, fields=("pressure", "velocity"))
    assert found.channels == ("pressure", "velocity_x", "velocity_y")
    np.testing.assert_array_equal(found.read(found.simulations[0], [1])[0, 0], flow(0)["pressure"][1])


def test_obstacles_are_true_inside_and_absent_where_there_is_none(tmp_path: Path) -> None:
    inside = disc((12, 16), 3, 11)
    write_own(tmp_path, obstacle=inside)
    found = open_collection(tmp_path, fields=BOTH)
    assert [one.has_obstacle for one in found.simulations] == [True, False, True, False]
    np.testing.assert_array_equal(found.obstacle(found.simulations[0]), inside)
    assert found.obstacle(found.simulations[1]) is None


def test_frames_need_not_start_at_zero(tmp_path: Path) -> None:
    write_own(tmp_path)
    for number in range(4):
        for frame in (0, 1):
            for field in BOTH:
                (tmp_path / f"sim_{number:06d}/{field}_{frame:06d}.npz").unlink()
    found = open_collection(tmp_path, fields=BOTH)
    assert found.simulations[0].frames == range(2, 6)
    np.testing.assert_array_equal(found.read(found.simulations[0], [4])[0, 2], flow(0)["pressure"][4])
    said = refused(lambda: found.read(found.simulations[0], [1]))
    assert "frame 1 of sim_000000" in said and "2 to 5" in said


def test_statistics_come_from_the_record_and_else_from_training_simulations_alone(tmp_path: Path) -> None:
    record = {**RECORD, "normalisation": {"velocity": {"mean": [0.25, -0.5], "std": [2.0, 3.0]}}}
    write_own(tmp_path, 8, record=record)
    opened = open_collection(tmp_path, fields=BOTH)
    assert opened.mean[:2] == (0.25, -0.5) and opened.std[:2] == (2.0, 3.0) and opened.estimated == ("pressure",)
    train = split_simulations(opened.simulations, opened.facts).segments["train"]
    values = np.stack([flow(one.simulation.number)["pressure"] for one in train])
    assert opened.mean[2] == pytest.approx(values.mean(), rel=1e-6)
    assert opened.std[2] == pytest.approx(values.std(), rel=1e-6)
    for one in split_simulations(opened.simulations, opened.facts).segments["test"]:
        path = tmp_path / one.simulation.name / "pressure_000003.npz"
        np.savez_compressed(path, np.full((12, 16), 1e6, np.float32))
    assert open_collection(tmp_path, fields=BOTH).mean == opened.mean


@pytest.mark.parametrize("recorded", [True, False])
def test_a_constant_channel_has_a_standard_deviation_of_one_and_is_named(tmp_path: Path, recorded: bool) -> None:
    still = {"mean": [0.0, 0.1], "std": [1.0, 0.0]}
    record = {**RECORD, "normalisation": {"velocity": still}} if recorded else RECORD
    for number in range(3):
        fields = flow(number)
        fields["velocity"][:, 1] = 0.1
        turbulence.write_simulation(tmp_path, number, fields, description={})
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    found = open_collection(tmp_path, fields=BOTH)
    assert found.constant == ("velocity_y",) and found.std[1] == 1.0 and found.std[0] > 0.5
    assert found.mean[1] == pytest.approx(0.1, rel=1e-6)


def test_a_model_is_told_what_differs_between_simulations_and_nothing_else(tmp_path: Path) -> None:
    write_own(tmp_path)
    found = open_collection(tmp_path, fields=BOTH)
    (reynolds,) = found.facts.conditions  # not the seed
    assert (reynolds.name, reynolds.mean) == ("Reynolds Number", 250.0)
    assert reynolds.std == pytest.approx(np.std([100, 200, 300, 400]))
    assert found.condition(found.simulations[2], 0) == (300.0,)
    for number in range(4):
        (tmp_path / f"sim_{number:06d}/src/description.json").write_text('{"Reynolds Number": 100}')
    assert open_collection(tmp_path, fields=BOTH).facts.conditions == ()


# --- published sets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "fields", "channels"),
    [
        ("inc", ("velocity", "pressure"), ("velocity_x", "velocity_y", "pressure")),
        ("tra", ("velocity", "density", "pressure"), ("velocity_x", "velocity_y", "density", "pressure")),
        ("iso", ("velocity", "velocityZ", "pressure"), ("velocity_x", "velocity_y", "velocityZ", "pressure")),
    ],
)
def test_published_sets_are_recognised_and_turned_to_rows_of_y(
    tmp_path: Path, kind: str, fields: tuple[str, ...], channels: tuple[str, ...]
) -> None:
    inside = disc((12, 16), 4, 12) if kind != "iso" else None
    written = write_published(tmp_path, kind, [20, 21], inside=inside)
    found = open_collection(tmp_path, fields=fields)
    known = SETS[kind]
    assert found.facts.canonical is known and found.facts.name == kind and not found.facts.periodic
    assert found.channels == channels and found.shape == (12, 16) and found.estimated == ()
    assert found.facts.lengths[1] == 2 * found.facts.lengths[0]  # 128 along x, 64 along y, square cells
    assert found.mean == tuple(m for field in fields for m in known.statistics[field][0])
    assert found.std == tuple(s for field in fields for s in known.statistics[field][1])
    frames = found.read(found.simulations[1], [3])
    np.testing.assert_array_equal(frames[0], np.concatenate([written[21][field][3] for field in fields]))
    mask = found.obstacle(found.simulations[0])
    assert mask is None if inside is None else np.array_equal(mask, inside)


def test_published_constants() -> None:
    inc, tra, iso = SETS["inc"], SETS["tra"], SETS["iso"]
    assert inc.statistics["velocity"] == ((0.444969, 0.000299), (0.206128, 0.206128))
    assert inc.statistics["pressure"] == ((0.000586,), (0.003942,))
    assert inc.parameter and (inc.parameter.mean, inc.parameter.std) == (550.0, 262.678467)
    # these are the statistics of the Reynolds numbers 100, 110, … 1000 themselves
    assert np.std(range(100, 1001, 10)) == pytest.approx(inc.parameter.std, rel=1e-6)
    assert tra.statistics["velocity"] == ((0.560642, -0.000129), (0.216987, 0.216987))
    assert tra.statistics["density"] == ((0.903352,), (0.145391,))
    assert tra.statistics["pressure"] == ((0.637941,), (0.119944,))
    assert tra.parameter and np.std(np.arange(50, 91) / 100) == pytest.approx(tra.parameter.std, rel=1e-5)
    assert iso.statistics["velocity"] == ((-0.054618, -0.385225), (0.539194, 0.710318))
    assert iso.statistics["velocityZ"] == ((-0.255757,), (0.510352,))
    assert iso.statistics["pressure"] == ((0.033446,), (0.258235,)) and iso.parameter is None


def test_a_reynolds_number_that_changes_in_time_is_told_as_it_is_at_the_frame(tmp_path: Path) -> None:
    write_published(tmp_path, "inc", [0])
    said = {"Reynolds Number": [200.0, 300.0, 400.0, 500.0], "Cylinder Size": 0.6}
    (tmp_path / "sim_000000/src/description.json").write_text(json.dumps(said))
    found = open_collection(tmp_path, fields=BOTH)
    assert found.condition(found.simulations[0], 2) == (400.0,)


def test_an_unpacked_archive_is_found_inside_its_folder_and_two_are_refused(tmp_path: Path) -> None:
    write_published(tmp_path / "128_tra_small/128_small_tra", "tra", [0])
    found = open_collection(tmp_path, fields=BOTH)
    assert found.root == tmp_path / "128_tra_small/128_small_tra"
    write_published(tmp_path / "128_inc/128_inc", "inc", [0])
    said = refused(lambda: open_collection(tmp_path, fields=BOTH))
    assert "2 sets" in said and "128_inc/128_inc" in said and "--data-dir" in said


def test_kind_overrides_dataset_json_and_the_description(tmp_path: Path) -> None:
    write_own(tmp_path)
    assert open_collection(tmp_path, fields=BOTH, kind="inc").facts.canonical is SETS["inc"]
    said = refused(lambda: open_collection(tmp_path, fields=BOTH, kind="tra"))
    assert "data_set is tra, whose src/description.json have Reynolds Number, Mach Number, Drag Coefficient" in said
    assert "sim_000000 has no number 'Mach Number' (its numbers: Reynolds Number, Seed)" in said and "fetch" not in said


@pytest.mark.parametrize("kind", sorted(SETS))
def test_a_dataset_json_beside_published_files_does_not_turn_their_axes(tmp_path: Path, kind: str) -> None:
    inside = disc((12, 16), 4, 12) if kind != "iso" else None
    write_published(tmp_path, kind, [20, 21, 22], inside=inside)
    record = {key: value for key, value in RECORD.items() if key != "simulated"}
    (tmp_path / "dataset.json").write_text(json.dumps(record))
    said = refused(lambda: open_collection(tmp_path, fields=BOTH))
    assert SETS[kind].title in said and ", ".join(SETS[kind].marks) in said and "delete dataset.json" in said
    assert open_collection(tmp_path, fields=BOTH, kind=kind).shape == (12, 16)  # type: ignore[arg-type]
    (tmp_path / "dataset.json").write_text(json.dumps({**record, "simulated": True}))
    assert open_collection(tmp_path, fields=BOTH).shape == (16, 12)  # ours, whatever else it says of itself


def test_a_published_simulation_without_its_number_is_to_be_fetched_again(tmp_path: Path) -> None:
    write_published(tmp_path, "inc", [20, 21])
    (tmp_path / "sim_000021/src/description.json").write_text('{"Cylinder Size": 0.6}')
    said = refused(lambda: open_collection(tmp_path, fields=BOTH))
    assert "sim_000021" in said and "has no number 'Reynolds Number'" in said and "fetch that simulation again" in said


# --- MATLAB files ------------------------------------------------------------------------------------------------

STORAGE = {"contiguous": {}, "chunked": {"chunks": (5, 8, 10, 2), "compression": "gzip"}}


@pytest.mark.parametrize("storage", ["contiguous", "chunked", "older"])
def test_matlab_rows_are_simulations_with_rows_of_y(tmp_path: Path, storage: str) -> None:
    rows = vorticity(7)
    path = tmp_path / "NavierStokes_V1e-5_N7_T5.mat"
    write_matlab(path, rows, hdf5=storage != "older", **STORAGE.get(storage, {}))
    found = open_collection(path, fields=("vorticity",))
    assert found.shape == (8, 10) and found.channels == ("vorticity",) and len(found.simulations) == 7
    assert found.simulations[0].parameters["Viscosity"] == 1e-5 and found.facts.frame_gap == 1.0
    assert found.facts.lengths == (1.0, 1.0) and found.facts.periodic and found.estimated == ("vorticity",)
    cache = FrameCache(found, 10**6)
    for number in (6, 0, 3):
        one = found.simulations[number]
        np.testing.assert_array_equal(found.read(one, [4, 1])[:, 0], rows[number, [4, 1]])
        np.testing.assert_array_equal(cache.read(one, [4, 1])[:, 0], rows[number, [4, 1]])
    train = [one.simulation.number for one in split_simulations(found.simulations, found.facts).segments["train"]]
    assert found.std[0] == pytest.approx(rows[sorted(train)].std(), rel=1e-5)


@pytest.mark.parametrize("storage", ["contiguous", "chunked"])
def test_interleaved_rows_come_off_the_disk_once(tmp_path: Path, storage: str) -> None:
    path = write_matlab(tmp_path / "ns_V1e-3_N7_T5.mat", vorticity(7), hdf5=True, **STORAGE[storage])
    found = open_collection(path, fields=("vorticity",))
    row_bytes = 5 * 8 * 10 * 4
    assert found.store.rows_at_once == BLOCK_BYTES // row_bytes // 2 * 2
    cache = FrameCache(found, 10**6)
    expected = [cache.read(one, range(5)) for one in found.simulations]
    path.unlink()  # everything came with the first row
    for one, frames in zip(found.simulations, expected, strict=True):
        np.testing.assert_array_equal(cache.read(one, range(5)), frames)


@pytest.mark.parametrize(
    ("name", "times", "gap"),
    [
        ("ns_V1e-3_N5000_T50.mat", np.arange(1.0, 6.0), 1.0),
        ("ns_V1e-4_N10000_T30.mat", np.arange(1.0, 6.0), 1.0),  # whatever the name says of the final time
        ("ns_data_V1e-4_N20_T50_R256test.mat", np.arange(0.25, 1.26, 0.25), 0.25),
        ("NavierStokes_V1e-5_N1200_T20.mat", None, 4.0),
    ],
)
def test_viscosity_and_frame_gap(tmp_path: Path, name: str, times: np.ndarray | None, gap: float) -> None:
    u = vorticity(3).transpose(0, 3, 2, 1)
    turbulence.scipy.io.savemat(tmp_path / name, {"u": u} if times is None else {"u": u, "t": times})
    found = open_collection(tmp_path, fields=("vorticity",))  # the folder will do
    assert found.root == tmp_path / name and found.facts.frame_gap == pytest.approx(gap)
    assert found.simulations[0].parameters["Viscosity"] == float(name.split("_V")[1].split("_")[0])


def test_matlab_faults(tmp_path: Path) -> None:
    good = write_matlab(tmp_path / "ns_V1e-3_N4_T5.mat", vorticity(4), hdf5=True, compression="gzip")

    def said(path: Path, **options: object) -> str:
        message = refused(lambda: open_collection(path, **{"fields": ("vorticity",), **options}))
        assert str(path) in message
        return message

    assert "does not say the viscosity" in said(Path(shutil.copy(good, tmp_path / "data.mat")))
    assert "vorticity alone" in said(good, fields=("velocity",))
    assert "does not exist" in said(tmp_path / "ns_V1e-3.mat")
    assert "2 MATLAB files" in said(tmp_path)
    cut = tmp_path / "ns_V1e-4_N4_T5.mat"
    cut.write_bytes(good.read_bytes()[:9000])
    assert "damaged MATLAB file" in said(cut)
    cut.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(500))
    assert "not a readable MATLAB file" in said(cut)
    cut.write_bytes(b"<html>")
    assert "not a readable MATLAB file" in said(cut)
    turbulence.scipy.io.savemat(cut, {"w": np.zeros((2, 3))})
    assert "the variables w, expected real numbers 'u'" in said(cut)
    turbulence.scipy.io.savemat(cut, {"u": np.zeros((2, 3))})
    assert "'u' of shape (2, 3)" in said(cut)
    with turbulence.h5py.File(cut, "w") as file:
        file["w"] = np.zeros(3)
    assert "the variables w" in said(cut)
    rows = vorticity(4)
    rows[2, 1, 0, 0] = np.nan
    write_matlab(cut, rows, hdf5=True)
    assert "NaN or infinite values in row 2" in said(cut)


# --- the cache ---------------------------------------------------------------------------------------------------


def opened(root: Path, **size: int) -> Collection:
    return open_collection(write_own(root, **size), fields=BOTH)


def test_the_cache_gives_what_the_files_give_and_does_not_read_twice(tmp_path: Path) -> None:
    found = opened(tmp_path)
    cache = FrameCache(found, 10**6)
    one = found.simulations[0]
    first = cache.read(one, [1, 3])
    np.testing.assert_array_equal(first, found.read(one, [1, 3]))
    first[:] = 0  # a sample that is changed in place does not reach the cache
    for path in tmp_path.glob("sim_000000/*_00000[13].npz"):
        path.unlink()
    np.testing.assert_array_equal(cache.read(one, [3])[0, 2], flow(0)["pressure"][3])
    np.testing.assert_array_equal(cache.read(one, [1, 2])[1, 2], flow(0)["pressure"][2])
    assert "velocity_000001.npz is missing" in refused(lambda: found.read(one, [1]))


def test_the_cache_stays_within_its_bytes_and_forgets_the_longest_unused(tmp_path: Path) -> None:
    found = opened(tmp_path)
    frame_bytes = 3 * 12 * 16 * 4
    cache = FrameCache(found, 3 * frame_bytes)
    one = found.simulations[0]
    cache.read(one, [0, 1, 2])
    cache.read(one, [0])  # now 1 is the longest unused
    cache.read(one, [3])
    assert [frame for _, frame in cache._frames] == [2, 0, 3] and cache._bytes == 3 * frame_bytes
    assert all(values.base is None for values in cache._frames.values())  # a view would hold more than it counts for
    assert cache.simulations_that_fit() == 1 and FrameCache(found, 12 * frame_bytes).simulations_that_fit() == 2
    tiny = FrameCache(found, 10)
    np.testing.assert_array_equal(tiny.read(one, [5, 4]), found.read(one, [5, 4]))
    assert not tiny._frames


# --- faults of a folder ------------------------------------------------------------------------------------------


def test_missing_folders_and_unknown_fields(tmp_path: Path) -> None:
    def said(path: Path, fields: object = BOTH) -> str:
        return refused(lambda: open_collection(path, fields=fields))  # type: ignore[arg-type]

    assert f"{tmp_path / 'none'} does not exist" in said(tmp_path / "none")
    assert "it holds nothing" in said(tmp_path) and "nbhelpers data simulate neural-operator" in said(tmp_path)
    write_own(tmp_path)
    message = said(tmp_path, ("velocity", "densty"))
    assert "no field 'densty'" in message and "pressure, velocity" in message
    assert "each one once" in said(tmp_path, ("velocity", "velocity"))
    assert "each one once" in said(tmp_path, ()) and "each one once" in said(tmp_path, "velocity")


def test_a_missing_frame_is_named(tmp_path: Path) -> None:
    write_own(tmp_path)
    (tmp_path / "sim_000002/pressure_000003.npz").unlink()
    said = refused(lambda: open_collection(tmp_path, fields=BOTH))
    assert str(tmp_path / "sim_000002/pressure_000003.npz") in said and "missing" in said
    assert open_collection(tmp_path, fields=("velocity",)).simulations[2].frames == range(6)


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "not a readable .npz file"),
        (lambda path: path.write_bytes(b""), "not a readable .npz file"),
        (lambda path: path.write_bytes(b"<html>no such page</html>"), "not a readable .npz file"),
        (lambda path: path.write_bytes(flipped(path.read_bytes(), 300)), "not a readable .npz file"),
        (lambda path: np.save(path.open("wb"), np.zeros((12, 16))), "one bare array"),
        (lambda path: np.savez(path, field=np.zeros((12, 16))), "holds field and no array 'arr_0'"),
        (lambda path: np.savez(path, np.array([{}], dtype=object)), "not a readable .npz file"),
        (lambda path: np.savez(path, np.full((12, 16), "a")), "expected numbers"),
        (lambda path: np.savez(path, np.zeros(12)), "shape (12,)"),
        (lambda path: np.savez(path, np.zeros((16, 12))), "(1, 16, 12)"),
        (lambda path: np.savez(path, np.zeros((2, 12, 16))), "the set began with (1, 12, 16)"),
        (lambda path: np.savez(path, np.full((12, 16), np.nan)), "192 values that are NaN or infinite"),
        (lambda path: np.savez(path, np.full((12, 16), 1e60)), "192 values that are NaN or infinite"),
    ],
)
def test_a_damaged_frame_is_one_sentence_with_its_path(tmp_path: Path, fault: Callable, part: str) -> None:
    found = opened(tmp_path)
    path = tmp_path / "sim_000001/pressure_000002.npz"
    fault(path)
    said = refused(lambda: found.read(found.simulations[1], [1, 2]))
    assert str(path) in said and part in said
    found.read(found.simulations[1], [1])


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"lengths": [1, 2', "not readable JSON"),
        ("[1]", "holds a list"),
        (json.dumps({**RECORD, "lengths": [1.0]}), "'lengths'"),
        (json.dumps({**RECORD, "lengths": [1.0, -2.0]}), "'lengths'"),
        (json.dumps({**RECORD, "frame_gap": 0}), "'frame_gap'"),
        (json.dumps({**RECORD, "frame_gap": None}), "'frame_gap'"),
        (json.dumps({**RECORD, "periodic": "yes"}), "'periodic'"),
        (json.dumps({**RECORD, "normalisation": {"velocity": {"mean": [0, 0]}}}), "'normalisation'"),
        (json.dumps({**RECORD, "normalisation": {"velocity": {"mean": [0, 0], "std": [1]}}}), "'normalisation'"),
        (json.dumps({**RECORD, "normalisation": {"velocity": {"mean": [0], "std": [1]}}}), "mean of 1 channels"),
    ],
)
def test_a_wrong_dataset_json_says_what_belongs_there(tmp_path: Path, text: str, part: str) -> None:
    write_own(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    assert part in refused(lambda: open_collection(tmp_path, fields=BOTH))


def test_a_set_nobody_described_is_refused_with_what_to_write(tmp_path: Path) -> None:
    write_own(tmp_path, record=None)
    said = refused(lambda: open_collection(tmp_path, fields=BOTH))
    assert str(tmp_path / "dataset.json") in said and '"frame_gap": 0.1' in said
    (tmp_path / "simulating.json").write_text("{}")
    assert "interrupted" in refused(lambda: open_collection(tmp_path, fields=BOTH))
    (tmp_path / "sim_000003/src/description.json").unlink()
    assert "sim_000003/src/description.json is missing" in refused(lambda: open_collection(tmp_path, fields=BOTH))


def test_an_obstacle_mask_turned_round_or_of_another_shape_is_refused(tmp_path: Path) -> None:
    found = open_collection(write_own(tmp_path, obstacle=~disc((12, 16), 3, 11)), fields=BOTH)
    said = refused(lambda: found.obstacle(found.simulations[0]))
    assert "obstacle_mask.npz makes 8" in said and "must be 1 inside the obstacle" in said
    np.savez(tmp_path / "sim_000000/obstacle_mask.npz", np.zeros((16, 12)))
    assert "but the fields are (12, 16)" in refused(lambda: found.obstacle(found.simulations[0]))


def test_fields_on_two_grids_are_refused(tmp_path: Path) -> None:
    for number in range(3):
        turbulence.write_simulation(
            tmp_path, number, {**flow(number), "vorticity": np.zeros((6, 6, 8))}, description={}
        )
    (tmp_path / "dataset.json").write_text(json.dumps(RECORD))
    said = refused(lambda: open_collection(tmp_path, fields=("velocity", "vorticity")))
    assert "(6, 8)" in said and "(12, 16)" in said
