"""One forward shared by several processes, each with a GPU of its own."""
