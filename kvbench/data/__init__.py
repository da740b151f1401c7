"""Data files that ship with kvbench: model presets and simulated device profiles. No code."""
