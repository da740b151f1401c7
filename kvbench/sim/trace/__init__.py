"""Traces of requests: when they come, how long they are, and the blocks of their input.

Read from files of several formats, or made up with the statistics of a real one. Simulations run
over `Columns`; the replay in the store goes through a `Trace` of objects. What needs numba is not
named here, so that a command which only reads a trace starts fast: `stats`, `fit`, `goodness`.
"""

from kvbench.sim.trace.read import FORMATS, read_columns, read_trace
from kvbench.sim.trace.requests import Request, Trace, requests_of
from kvbench.sim.trace.shape import Shape
from kvbench.sim.trace.synthetic import Conversations, synthetic
from kvbench.sim.trace.twin import default_trace, generated
from kvbench.sim.trace.write import write_trace

__all__ = [
    "FORMATS",
    "Conversations",
    "Request",
    "Shape",
    "Trace",
    "default_trace",
    "generated",
    "read_columns",
    "read_trace",
    "requests_of",
    "synthetic",
    "write_trace",
]
