"""Two reports into verdicts: what became slower, what did not, and what could not have been seen.

Sees reports, never a device. May import: kvbench.errors, units, machine, geometry and
measure.result.
"""
