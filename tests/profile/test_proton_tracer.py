"""Proton beside our recorder: its tree is summed, and without a GPU it says what it needs.

The tree below has the form that Proton writes and was not written by one: no GPU has run this.
"""

from typing import Any

import pytest
import torch

from kvbench.errors import TierUnavailableError
from kvbench.profile.proton_tracer import ProtonTracer, totals


def node(name: str, *children: dict[str, Any], **metrics: Any) -> dict[str, Any]:
    return {
        "frame": {"name": name, "type": "function"},
        "metrics": {key.replace("time", "time (ns)"): value for key, value in metrics.items()},
        "children": list(children),
    }


def test_launches_of_one_kernel_are_summed_over_scopes() -> None:
    copy = {"count": 2, "device_id": "0", "device_type": "CUDA", "time": 3000}
    gather = {"count": 1, "device_id": "0", "device_type": "CUDA", "time": 9000}
    tree = [
        node("ROOT", node("warm", node("copy_words", **copy)), node("gather_words", **gather)),
        {"CUDA": {"0": {"arch": "90", "num_sms": 132}}},
    ]
    tree[0]["children"].append(node("copy_words", **copy))
    assert totals(tree) == [
        {"name": "gather_words", "launches": 1, "time_s": pytest.approx(9e-6)},
        {"name": "copy_words", "launches": 4, "time_s": pytest.approx(6e-6)},
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_needs() -> None:
    with pytest.raises(TierUnavailableError, match=r"^Proton cannot start: .*needs a GPU"):
        ProtonTracer().__enter__()
