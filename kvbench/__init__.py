"""Measure, run and predict the KV-cache storage hierarchy of LLM inference."""

__version__ = "0.1.0"
