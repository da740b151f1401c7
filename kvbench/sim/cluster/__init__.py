"""The cluster simulator: `simulate` runs a trace through nodes, tiers, links and rules."""

from kvbench.sim.cluster.simulate import simulate

__all__ = ["simulate"]
