"""Tests of the rings: the device against the driver, and against drivers that break the rules."""
