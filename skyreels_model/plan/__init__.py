"""What is decided about a film before any work is done. No device, no model."""
