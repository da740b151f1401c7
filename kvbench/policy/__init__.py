"""Which block goes when a tier is full, and which may come in. Pure: no clock, no I/O, no torch.

The store and the simulator run the same objects; a test compares their decisions step by step.
`named` makes a policy by its name.
"""

from kvbench.policy.names import NAMES, named

__all__ = ["NAMES", "named"]
