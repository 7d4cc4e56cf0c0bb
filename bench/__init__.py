"""Benchmarks: what the parts can do, measured on the machine at hand; never part of the tests."""
