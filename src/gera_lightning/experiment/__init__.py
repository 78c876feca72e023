"""Runs of an experiment: planned, executed, their results; and where stores, runs and results lie."""
