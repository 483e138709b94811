"""One film through the host: from a plan to latents, from latents to frames."""
