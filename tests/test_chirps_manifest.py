"""The manifest of daily CHIRPS rain: years that can be split, addresses as the archive has them, terms."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from netcdf import days, made, write_nc

from nbhelpers.core.manifest import Manifest, fetch, load_manifest, verify
from nbhelpers.stages.rainfall_cvae.netcdf import find_rain, open_series, read

ARCHIVE = "https://data.chc.ucsb.edu/products/CHIRPS-2.0/global_daily/netcdf/p25/"
LAT, LON = [40.125, 40.375], [0.125, 0.375, 0.625]


def test_one_file_a_year_from_the_archive() -> None:
    manifest = load_manifest("chirps-daily")
    years = []
    for file in manifest.files:
        name = re.fullmatch(r"p25/(chirps-v2\.0\.(\d{4})\.days_p25\.nc)", file.path)
        assert name and file.mirrors == (ARCHIVE + name[1],) and file.unpack is None
        years.append(int(name[2]))
    assert years == list(range(1991, 2021))


def test_terms_and_what_is_not_known() -> None:
    manifest = load_manifest("chirps-daily")
    assert "doi:10.1038/sdata.2015.66" in manifest.citation and "Funk" in manifest.citation
    assert "Public domain" in manifest.licence and "Not checked here: sizes and checksums" in manifest.description
    assert all(file.bytes is None and file.sha256 is None for file in manifest.files)
    (pattern,) = re.findall(r"'(p25/[^']+)' \(ten years\)", manifest.description)
    assert len(fnmatch.filter([file.path for file in manifest.files], pattern)) == 10


def test_files_placed_by_hand_are_recorded_and_read(tmp_path: Path) -> None:
    manifest = load_manifest("chirps-daily")
    first = Manifest(**{**vars(manifest), "files": manifest.files[:1]})
    moments = days(1991)
    write_nc(
        tmp_path / first.files[0].path, "precip", made(LAT, LON, moments), y=LAT, x=LON, moments=moments, fill=-9999.0
    )
    (path,) = fetch(first, tmp_path, progress=False, kaggle_input=tmp_path / "none")
    assert [state.status for state in verify(first, tmp_path)] == ["recorded on first use"]
    series = open_series([path], "mm/day", choose=find_rain)
    assert read(series, list(series.where)).shape == (8, 2, 3)
