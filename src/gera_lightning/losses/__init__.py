"""Training losses, one published loss a file, all under one protocol (`base.Loss`); plain torch.

Pure functions hold the mathematics, classes hold settings.
"""
