"""Embedding stores: reading, writing, importing and inspecting them; item splits and samples."""
