"""Tests of what protocols promise, for whoever implements one. They need pytest."""
