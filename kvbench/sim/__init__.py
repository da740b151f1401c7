"""Traces of requests. Pure: no clock, no thread, no device, no torch."""
