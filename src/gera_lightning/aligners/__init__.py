"""Closed-form aligners, and the `Aligner` that every method ends as: saved, loaded, encoded, scored and searched with.

A closed form is a small frozen dataclass with a method `candidates(x_a, x_b, settings)` that fits all its settings at once and
yields one pair of maps each, from the simplest setting to the most flexible.
"""
