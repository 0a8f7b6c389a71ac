"""Calibration data, one sample after another: .npz files, folders of them, Python functions and folders of images.

An array of a rank above the input's holds samples along its first axis. An array of the input's rank is cut along its
first axis into samples of the size that the model takes there (1 where that is open); but in a folder each file is one
sample, as is what a Python reader gives, unless its arrays have the higher rank.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from opcel_compiler.calibrate.errors import CalibrationError, CalibrationWarning
from opcel_compiler.calibrate.samples import Feeds, Input, Sample

if TYPE_CHECKING:
    import zipfile

Named = Iterator[tuple[str, Feeds]]
"""(where it is from, arrays by name), sample by sample."""


def read_samples(
    data: Any, inputs: Sequence[Input], preprocess: str | os.PathLike[str] | None = None
) -> Iterator[Sample]:
    """The samples of `data`: a path of an .npz file or of a folder of .npz files or images, "module.py:function", a
    function without arguments that gives samples, or an iterable of samples. A sample is a mapping from input names to
    arrays, a sequence of arrays in the model's order, or, for one input, an array.

    `preprocess` is the description of how images become an input. Raises CalibrationError.
    """
    for index, (where, feeds) in enumerate(_named(data, inputs, preprocess)):
        yield Sample(index, where, feeds)


def _named(data: Any, inputs: Sequence[Input], preprocess: str | os.PathLike[str] | None) -> Named:
    if not isinstance(data, (str, os.PathLike)):
        yield from _given(data, inputs, getattr(data, "__name__", "the data"))
        return
    path = Path(data)
    if path.is_dir():
        yield from _folder(path, inputs, preprocess)
    elif path.suffix == ".npz" or (path.exists() and ":" not in path.name):
        yield from npz_samples(path, inputs, cut=True)
    elif ":" in os.fspath(data):
        yield from _given(_function(os.fspath(data)), inputs, os.fspath(data))
    else:
        raise CalibrationError(
            f"there is no calibration data at {path}; it is an .npz file, a folder of .npz files or of images, or "
            "a Python reader module.py:function"
        )


def _folder(path: Path, inputs: Sequence[Input], preprocess: str | os.PathLike[str] | None) -> Named:
    from opcel_compiler.calibrate.images import Preprocessing, find_images, image_samples  # memory that others need not

    files = sorted(path.glob("*.npz"))
    images = find_images(path)
    if files and not (images and preprocess):
        for file in files:
            yield from npz_samples(file, inputs, cut=False)
    elif images:
        yield from image_samples(path, images, inputs, Preprocessing.read(path, preprocess))
    else:
        raise CalibrationError(f"{path} holds neither .npz files nor images (.png, .jpg, .ppm, .npy); nothing to read")


# -- .npz --------------------------------------------------------------------------------------------------------------


def npz_samples(path: Path, inputs: Sequence[Input], cut: bool) -> Named:
    """The samples of one file, each read when it is asked for."""
    import zipfile  # memory that other readers need not

    try:
        with zipfile.ZipFile(path) as archive:
            members = {n.removesuffix(".npy"): n for n in archive.namelist() if n.endswith(".npy")}
            names = _names(members, inputs, path)
            arrays = [_Stream(archive, members[names[i.name]], i, cut, path) for i in inputs]
            counts = {a.samples for a in arrays}
            if len(counts) > 1:
                each = ", ".join(f"{a.input.name} {a.samples}" for a in arrays)
                raise CalibrationError(f"{path}: its arrays hold different numbers of samples: {each}")
            for i in range(counts.pop() if counts else 0):
                where = path.name if arrays[0].samples == 1 else f"{path.name}, item {i}"
                yield where, {a.input.name: a.next() for a in arrays}
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise CalibrationError(f"cannot read the calibration data {path} as an .npz file: {error}") from error


def _names(found: Iterable[str], inputs: Sequence[Input], path: Path) -> dict[str, str]:
    """Which array is for which input. One array without a name of its own is for an only input."""
    known = list(found)
    if len(inputs) == 1 and known == ["arr_0"]:
        return {inputs[0].name: "arr_0"}
    missing = [i for i in inputs if i.name not in known]
    if missing:
        raise CalibrationError(
            f"{path} has no array {missing[0].name!r}; the model takes {', '.join(map(str, inputs))}, the file has "
            f"{', '.join(map(repr, known)) or 'nothing'}", tensor=missing[0].name,
        )  # fmt: skip
    names = {i.name for i in inputs}
    if extra := [n for n in known if n not in names]:
        text = f"{path}: {', '.join(extra)} is no input of the model and is not read"
        warnings.warn(text, CalibrationWarning, stacklevel=2)
    return {i.name: i.name for i in inputs}


class _Stream:
    """One array of an .npz file, read item by item."""

    def __init__(self, archive: zipfile.ZipFile, member: str, input: Input, cut: bool, path: Path) -> None:
        self.input = input
        self.file: IO[bytes] = archive.open(member)
        try:
            version = np.lib.format.read_magic(self.file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, self.dtype = read(self.file)
        except ValueError as error:
            raise CalibrationError(
                f"{path}: its array {input.name!r} is damaged: {error}", tensor=input.name
            ) from error
        if self.dtype.hasobject:
            raise CalibrationError(f"{path}: its array {input.name!r} holds Python objects", tensor=input.name)
        if fortran and len(shape) > 1:
            raise CalibrationError(
                f"{path}: its array {input.name!r} lies column by column and cannot be read item by item; save it with "
                "numpy.ascontiguousarray", tensor=input.name,
            )  # fmt: skip
        self.samples, self.shape = division(shape, input, cut)
        self.bytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def next(self) -> np.ndarray:
        data = self.file.read(self.bytes)
        if len(data) != self.bytes:
            raise EOFError(f"the array {self.input.name!r} ends early")
        return np.frombuffer(data, self.dtype).reshape(self.shape)


def division(shape: Sequence[int], input: Input, cut: bool) -> tuple[int, tuple[int, ...]]:
    """(how many samples an array of this shape holds, the shape of each)."""
    rank = input.rank
    if len(shape) == rank + 1:
        return shape[0], tuple(shape[1:])
    if not cut or len(shape) != rank or rank == 0:
        return 1, tuple(shape)
    first = input.dims[0]
    size = first if isinstance(first, int) else 1
    if size < 1 or shape[0] % size:
        return 1, tuple(shape)
    return shape[0] // size, (size, *shape[1:])


# -- Python ------------------------------------------------------------------------------------------------------------


def _function(text: str) -> Callable[[], Any]:
    """The function that "module.py:function" names, a file or a module that can be imported."""
    where, _, name = text.rpartition(":")
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(f"opcel_reader_{Path(where).stem}", where)
            if spec is None or spec.loader is None:
                raise CalibrationError(f"cannot read {where} as a Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        found = getattr(module, name)
    except CalibrationError:
        raise
    except Exception as error:
        raise CalibrationError(f"the reader {text} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise CalibrationError(f"the reader {text} is a {type(found).__name__}, not a function")
    made: Callable[[], Any] = found
    return made


def _given(data: Any, inputs: Sequence[Input], where: str) -> Named:
    """What a reader or an iterable gives; a mapping of arrays is one .npz file in memory."""
    if isinstance(data, Mapping):
        yield from _mapping(data, inputs, where)
        return
    if callable(data):
        if any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
               for p in inspect.signature(data).parameters.values()):  # fmt: skip
            raise CalibrationError(f"the reader {where} takes arguments; a reader takes none and gives samples")
        data = data()
    if not isinstance(data, Iterable):
        raise CalibrationError(f"{where} gives a {type(data).__name__}, not samples one after another")
    for i, item in enumerate(data):
        yield f"{where}, item {i}", _feeds(item, inputs, f"{where}, item {i}")


def _mapping(data: Mapping[str, Any], inputs: Sequence[Input], where: str) -> Named:
    arrays = {str(name): np.asarray(value) for name, value in data.items()}
    names = _names(arrays, inputs, Path(where))
    parts = [(i.name, arrays[names[i.name]], *division(arrays[names[i.name]].shape, i, True)) for i in inputs]
    counts = {n for _, _, n, _ in parts}
    if len(counts) > 1:
        each = ", ".join(f"{name} {n}" for name, _, n, _ in parts)
        raise CalibrationError(f"{where}: its arrays hold different numbers of samples: {each}")
    for i in range(counts.pop() if counts else 0):
        yield f"{where}, item {i}", {name: a.reshape(n, *shape)[i] for name, a, n, shape in parts}


def _feeds(item: Any, inputs: Sequence[Input], where: str) -> Feeds:
    if isinstance(item, Mapping):
        return {str(name): np.asarray(value) for name, value in item.items()}
    if isinstance(item, np.ndarray):
        item = [item]
    if isinstance(item, (list, tuple)) and len(item) == len(inputs):
        return {i.name: np.asarray(value) for i, value in zip(inputs, item, strict=True)}
    count = f"{len(item)} arrays" if isinstance(item, (list, tuple)) else f"a {type(item).__name__}"
    raise CalibrationError(
        f"{where} is {count}; a sample is a mapping from names to arrays, or an array for each of "
        f"{', '.join(i.name for i in inputs)}"
    )
