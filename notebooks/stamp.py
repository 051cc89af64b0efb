"""Write the repository's address wherever it stands: ``python notebooks/stamp.py URL``.

``setup.cfg`` is the one source; every other place carries the same ``OWNER/NAME``, which a test checks.
"""

from __future__ import annotations

import argparse
import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def current() -> str:
    """The address in setup.cfg."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config["metadata"]["url"]


def places() -> list[Path]:
    """Files that carry the address, setup.cfg aside."""
    return [
        ROOT / "README.md",
        ROOT / "colab_cells" / "setup.py",
        *sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py")),
    ]


def slug(url: str) -> str:
    """``OWNER/NAME`` of an address."""
    return url.removeprefix("https://github.com/").strip("/")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="https://github.com/OWNER/NAME")
    url = parser.parse_args().url
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", url):
        parser.error(f"{url!r} is no address like https://github.com/OWNER/NAME")
    before = slug(current())
    for place in [ROOT / "setup.cfg", *places()]:
        place.write_text(place.read_text(encoding="utf-8").replace(before, slug(url)), encoding="utf-8")
        print(f"stamped {place.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
