"""Consumers of the store: what other libraries keep in it. Each needs its library."""
