"""Random numbers that depend on nothing but their names: (seed, what for, which).

So a request draws the same whatever happened before, in machine code and in plain Python. Products
are used modulo 2^32 alone, which wrapping and unbounded integers agree on.
"""

from kvbench.sim.jit import compiled

_LOW = 0xFFFFFFFF


@compiled
def mixed(x: int) -> int:
    """32 bits, each of which depends on all of x's low 32 (MurmurHash3's finaliser, Appleby)."""
    x &= _LOW
    x ^= x >> 16
    x = (x * 0x85EBCA6B) & _LOW
    x ^= x >> 13
    x = (x * 0xC2B2AE35) & _LOW
    return x ^ (x >> 16)


@compiled
def hashed(seed: int, a: int, b: int) -> int:
    """32 bits for the three."""
    h = mixed(int(seed) + 0x9E3779B9)
    h = mixed(h ^ (int(seed) >> 32))
    h = mixed(h * 5 + int(a) + 0x7F4A7C15)
    return mixed(h * 5 + int(b) + 0x1B873593)


@compiled
def uniform(seed: int, a: int, b: int) -> float:
    """Between 0 and 1, never 1."""
    return hashed(seed, a, b) / 4294967296.0


@compiled
def below(seed: int, a: int, b: int, limit: int) -> int:
    """0 to limit - 1; uneven by at most limit / 2^32."""
    return (hashed(seed, a, b) * int(limit)) >> 32
