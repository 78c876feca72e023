"""What an aligner is worth: retrieval, neighbourhoods, similarity of spaces, statistics and
comparisons of runs.
"""
