"""How the parts of the loop are compiled: one machine function each, and a state behind a pointer.

Left alone, numba would compile a function anew for every constant and every width of integer it is
called with, and would hand thirty arrays from function to function. Here all integers are 64 bits
wide at a call, and compiled code gets the state as one reference. Without numba nothing changes:
functions stay what they are and the state is a named tuple.
"""

import importlib
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from kvbench.sim.cluster.state import State
from kvbench.sim.jit import COMPILES

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """A part of the loop: in machine code where there is numba, and then not for Python to call.

    Only `advance` can be called and is kept on disk, with all its parts in it; wrappers and a file
    for each part would take two thirds of the time. Their Python is in `py_func`.
    """
    if not COMPILES:
        return function
    numba: Any = importlib.import_module("numba")
    made = numba.njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    _widen(made)
    return cast("Callable[P, R]", made)


def _widen(made: Any) -> None:  # noqa: ANN401 - numba is untyped
    types: Any = importlib.import_module("numba.core.types")
    template_of = made.get_call_template

    def wide(kind: Any) -> Any:  # noqa: ANN401
        plain = types.unliteral(kind)
        if isinstance(plain, types.Integer):
            return types.int64
        if isinstance(plain, types.BaseTuple):
            return types.BaseTuple.from_types([wide(part) for part in plain])
        return plain

    def with_wide(args: Any, kws: Any) -> Any:  # noqa: ANN401
        return template_of(
            tuple(wide(kind) for kind in args), {name: wide(kws[name]) for name in kws}
        )

    made.get_call_template = with_wide


def _by_reference() -> Callable[..., State]:
    """What makes the compiled loop's state of all tables."""
    types: Any = importlib.import_module("numba.core.types")
    structref: Any = importlib.import_module("numba.experimental.structref")

    @structref.register
    class StateType(types.StructRef):  # type: ignore[misc]  # numba is untyped
        def preprocess_fields(self, fields: Any) -> Any:  # noqa: ANN401
            return tuple((name, types.unliteral(kind)) for name, kind in fields)

        @property
        def mangling_args(self) -> tuple[str, tuple[int, ...]]:
            return "State", (self._code,)  # not all its columns: names of functions hold this

    class Held(structref.StructRefProxy):  # type: ignore[misc]  # numba is untyped
        pass

    structref.define_proxy(Held, StateType, list(State._fields))
    return cast("Callable[..., State]", Held)


held: Callable[..., State] = _by_reference() if COMPILES else State
