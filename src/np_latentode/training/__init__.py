"""Training: SVI with validation and checkpoints, and priors fitted to codes."""
