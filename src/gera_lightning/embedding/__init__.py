"""From raw files to embedding stores: corpora, reading, and encoding with resume."""
