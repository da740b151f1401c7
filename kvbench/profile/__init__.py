"""A timeline of one case: what its threads, its drive and its GPU did, slice by slice.

`take` runs the case in a fresh process (`child`), where a `recorder` wraps the functions that do
the work; `trace` writes what came back as a Chrome trace and `summary` says where the time went.
Nothing here is a measurement to be compared: recording costs time. `kvbench run` measures.
"""
