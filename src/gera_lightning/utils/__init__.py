"""What every room uses: errors, files, processes, parts from settings, progress."""
