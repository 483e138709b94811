"""Which model calls of a film, or blocks of one, can be left out, and what stands in for them."""
