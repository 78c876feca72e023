"""Training objectives, one published loss a file. Plain torch: pure functions, and classes that
only hold settings.
"""
