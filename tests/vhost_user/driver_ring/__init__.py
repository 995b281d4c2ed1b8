"""Tests of the driver's side of rings."""
