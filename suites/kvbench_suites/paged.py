"""What gathers and scatters have in common, in host memory and in GPU memory."""

from collections.abc import Mapping

from kvbench.geometry import KVGeometry
from kvbench.measure.suite import Kind, Parameter, Value

PAGES = (
    Parameter(name="page_bytes", kind=Kind.BYTES, meaning="bytes of one piece of a block"),
    Parameter(name="block_bytes", kind=Kind.BYTES, meaning="bytes of a block, whole pages"),
)


def paged(geometry: KVGeometry) -> dict[str, Value]:
    """The page parameters of a model; a block of several kinds of page is mostly the first."""
    pages = geometry.pages[0]
    return {"page_bytes": pages.bytes, "block_bytes": pages.bytes * pages.count}


def partial_page(params: Mapping[str, Value]) -> str | None:
    """Why block and page do not go together, or None."""
    page_bytes, block_bytes = int(params["page_bytes"]), int(params["block_bytes"])
    if block_bytes % page_bytes == 0:
        return None
    return f"block_bytes = {block_bytes} is no multiple of page_bytes = {page_bytes}"
