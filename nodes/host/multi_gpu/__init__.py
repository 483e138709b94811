"""One MODEL on several GPUs: this process is rank 0, workers hold the transformer on the others."""
