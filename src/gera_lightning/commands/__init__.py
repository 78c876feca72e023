"""One module a verb of `gera`: `run(words)` is the command line's, the function of the verb's name
is Python's.
"""
