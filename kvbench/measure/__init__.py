"""Suites, samples, statistics and results: how a number is made."""
