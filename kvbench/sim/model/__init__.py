"""The performance model: prefill, decode and moving blocks, from calibrations that it names.

`hardware` and `from_hardware` are data sheets, `from_report` is a machine that was measured,
`compute`, `published` and `splitwise` are times of computing; `scenario_parts` joins them for the
simulator, `restore` weighs loading against recomputing. All of it is modelled, and says so.

May import: kvbench.errors, kvbench.geometry, kvbench.measure.result, kvbench.sim.scenario. numpy
and scipy, not torch.
"""

from kvbench.sim.model.compute import Compute, compute, fitted, published, splitwise
from kvbench.sim.model.curve import Curve, Point
from kvbench.sim.model.hardware import Drive, Hardware, Nic, drive, hardware, hardware_names, nic
from kvbench.sim.model.parts import Parts, scenario_parts
from kvbench.sim.model.prediction import Prediction
from kvbench.sim.model.shape import Shape, shape_of
from kvbench.sim.model.tiers import Tiers, from_hardware, from_report

__all__ = [
    "Compute",
    "Curve",
    "Drive",
    "Hardware",
    "Nic",
    "Parts",
    "Point",
    "Prediction",
    "Shape",
    "Tiers",
    "compute",
    "drive",
    "fitted",
    "from_hardware",
    "from_report",
    "hardware",
    "hardware_names",
    "nic",
    "published",
    "scenario_parts",
    "shape_of",
    "splitwise",
]
