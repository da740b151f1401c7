"""A codec by kernels and by plain torch: one form, so that either reads what the other wrote.

On a GPU a division may be two units in the last place off, so there only the values are compared.
"""

import numpy as np
import pytest
import torch

from kvbench.store.block import Bytes, Layout
from kvbench.store.codec import Codec, Dtype, Format

LAYOUT = Layout(8192, parts=4)


def payload(seed: int, dtype: Dtype) -> Bytes:
    values = torch.randn(LAYOUT.block_bytes // 2, generator=torch.Generator().manual_seed(seed))
    values[:256] *= 1e-3
    values[256:384] = 0  # a group of nothing
    values[384:512] = values[384]  # a group of one value
    made: Bytes = values.to(getattr(torch, dtype)).view(torch.uint8).numpy()
    return made


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("form", "group"), [("fp8", 128), ("int8", 64), ("int4", 32)])
def test_kernels_and_torch_encode_and_decode_alike(
    form: Format, group: int, dtype: Dtype, device: str
) -> None:
    by_torch = Codec(layout=LAYOUT, format=form, group=group, dtype=dtype, kernels=False)
    by_kernels = Codec(
        layout=LAYOUT, format=form, group=group, dtype=dtype, device=device, kernels=True
    )
    wrote = payload(5, dtype)
    encoded, error, share = by_torch.encode(wrote)
    others, other_error, other_share = by_kernels.encode(wrote)
    assert 0 < error < 1
    assert 0 < share <= 1
    assert other_error == pytest.approx(error, rel=0.01)
    assert other_share == pytest.approx(share, rel=0.01)
    if device == "cpu":
        assert np.array_equal(others, encoded)
    values = []
    for codec, form_of_it in ((by_torch, others), (by_kernels, encoded)):
        out = np.zeros(LAYOUT.block_bytes, dtype=np.uint8)
        codec.decode(form_of_it, out)
        values.append(torch.from_numpy(out).view(getattr(torch, dtype)).float())
    assert torch.allclose(values[0], values[1], rtol=0.05, atol=0.05)
    if device == "cpu":
        assert torch.equal(values[0], values[1])
