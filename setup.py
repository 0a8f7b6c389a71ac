"""The native part of the build; everything else is in pyproject.toml."""

from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup

setup(
    ext_modules=[
        Pybind11Extension(
            "opcel_compiler.runtime._runtime",
            ["csrc/bindings/module.cpp"],
            depends=[str(h) for folder in ("base", "bindings", "runtime") for h in Path("csrc", folder).glob("*.h")],
            include_dirs=["csrc"],
            cxx_std=17,
            extra_compile_args=["-O2", "-fvisibility=hidden", "-Wall", "-Wextra"],
        )
    ]
)
