"""Runs of an experiment: planned and executed, their results, and where all of it lies."""
