"""Maps from a frozen space to the shared one, preprocessing before them, and the score between
their images.
"""
