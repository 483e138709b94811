"""A film on disk while it is made: what is finished, and what is at work, to be gone on with."""
