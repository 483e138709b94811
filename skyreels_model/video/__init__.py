"""How do frames become a file, piece by piece, and a file frames? PyAV is imported when needed."""
