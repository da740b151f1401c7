"""Triton kernels that move KV cache. Imports torch and triton only, nothing from kvbench.

One file a kernel: the kernel, and a wrapper that checks its arguments and launches it on the
current stream. `reference` has the same functions in plain torch; a wrapper and its reference
must leave the same bytes behind.
"""
