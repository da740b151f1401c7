"""Compiles the hot loops of the simulator with numba, where there is numba.

Without it, or with KVBENCH_NO_NUMBA set, the same functions run as plain Python: slower by two
orders of magnitude, with the same results. So whatever is compiled is written as plain loops over
arrays and numbers, and what has to overflow (random numbers) is done in NumPy's own integers.

May import: nothing of kvbench.
"""

import contextlib
import hashlib
import importlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M")
_KEPT_S = 30 * 86_400.0


def _numba() -> Any:  # noqa: ANN401 - an untyped package
    if os.environ.get("KVBENCH_NO_NUMBA"):
        return None
    try:
        import numba  # noqa: PLC0415 - optional, and takes half a second
    except ImportError:
        return None
    return numba


def _cache_folder() -> str:
    """Where machine code is kept: one folder for each state of the simulator's sources.

    numba looks for changes in the file of a function alone, not in those that it calls.
    """
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in sorted(here.rglob("*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvbench"
    folder = caches / f"compiled-{digest.hexdigest()[:16]}"
    if folder.exists():
        with contextlib.suppress(OSError):  # it belongs to somebody else
            folder.touch()  # in use
    else:
        _forget_old(caches)
    return str(folder)


def _forget_old(caches: Path) -> None:
    """Remove what other states of the sources left there long ago."""
    for other in caches.glob("compiled-*"):
        with contextlib.suppress(OSError):  # another process is removing it too
            if time.time() - other.stat().st_mtime > _KEPT_S:
                shutil.rmtree(other)


_NUMBA = _numba()
COMPILES = _NUMBA is not None
_FOLDER = _cache_folder() if COMPILES else ""


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function in machine code, kept on disk between runs; it releases the GIL.

    An index out of range is not noticed, as in C; run with KVBENCH_NO_NUMBA to notice it.
    """
    return _made(function)


def inlined(function: Callable[P, R]) -> Callable[P, R]:
    """As `compiled`, and copied into whatever compiled code calls it: for what is small."""
    return _made(function, forceinline=True)


def _made(function: Callable[P, R], **options: bool) -> Callable[P, R]:
    if _NUMBA is None:
        return function
    config, before = _NUMBA.config, _NUMBA.config.CACHE_DIR
    config.CACHE_DIR = before or _FOLDER  # other users of numba in this process keep theirs
    try:
        made = _NUMBA.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # no folder can be written to
        made = _NUMBA.njit(nogil=True, **options)(function)
    finally:
        config.CACHE_DIR = before
    _without_literals(made)
    return cast("Callable[P, R]", made)


def _without_literals(made: Any) -> None:  # noqa: ANN401 - an untyped package
    """Have numba compile one version for all constants of a type that compiled callers pass.

    Left alone, it compiles `append(m, 0)` and `append(m, 1)` apart, and all that they call.
    """
    general, by_type = _NUMBA.types.unliteral, made.get_call_template

    def get_call_template(args: Any, kws: Any) -> Any:  # noqa: ANN401
        named = {name: general(each) for name, each in dict(kws).items()}
        return by_type(tuple(general(each) for each in args), named)

    made.get_call_template = get_call_template


def _pointing() -> Any:  # noqa: ANN401 - an untyped package
    extending = importlib.import_module("numba.extending")
    types = importlib.import_module("numba.core.types")

    @extending.intrinsic  # type: ignore[untyped-decorator]
    def pointer_to(_: Any, array: Any) -> Any:  # noqa: ANN401
        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ANN401
            (kind,) = signature.args
            return context.make_array(kind)(context, builder, args[0]).data

        return types.CPointer(array.dtype)(array), code

    return pointer_to


class _Same(Protocol):
    """What gives back the kind of array that it is given."""

    def __call__(self, array: M, /) -> M: ...


def _itself(array: M, /) -> M:
    return array


# In compiled code, a flat array as a bare pointer to its words; elsewhere the array. numba counts
# references to an array at every call that is given it, with atomic additions, and hands it over in
# seven parts. Whoever calls has to keep the array; an index below 0 is not counted from the end.
pointed: _Same = _pointing() if COMPILES else _itself
