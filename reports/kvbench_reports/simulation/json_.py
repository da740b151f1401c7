"""JSON: the simulation itself, indented; `decode_simulation` reads it back."""

from kvbench.sim.record import Simulation, encode_simulation


def render(simulation: Simulation) -> str:
    """The simulation as indented JSON."""
    return encode_simulation(simulation).decode()
