"""Filters of frozen features, fitted on a modality's unpaired rows."""
