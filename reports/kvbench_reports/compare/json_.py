"""JSON: the record of the comparison itself, indented; `decode_comparison` reads it back."""

import msgspec

from kvbench.compare.record import Comparison, encode_comparison


def render(comparison: Comparison) -> str:
    """The comparison as indented JSON."""
    return msgspec.json.format(encode_comparison(comparison), indent=2).decode() + "\n"
