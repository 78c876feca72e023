"""Local manifold geometry: neighbour graphs, kernels on them, and the diffusion operators they
define; how far two spaces agree.

Plain torch; `neighbors` is the only module that imports FAISS.
"""
