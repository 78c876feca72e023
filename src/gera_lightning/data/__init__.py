"""Embedding stores, item splits with budgets and pools, the LightningDataModule, and synthetic
stores.
"""
