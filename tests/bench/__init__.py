"""Benchmarks, run by `make bench`: figures, and what was expected. Slowness is no failure, loss is."""
