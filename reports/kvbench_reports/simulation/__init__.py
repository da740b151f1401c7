"""A simulation in, text out: one format a file. HTML is in `kvbench_reports.html`."""

from kvbench_reports.simulation import json_, table

SIMULATION_FORMATS = {"table": table.render, "json": json_.render}
__all__ = ["SIMULATION_FORMATS"]
