"""JSON: the trends themselves, indented, every point in them."""

import msgspec

from kvbench.history import Trends, encode_trends


def render(trends: Trends) -> str:
    """The trends as indented JSON."""
    return msgspec.json.format(encode_trends(trends), indent=2).decode() + "\n"
