"""The NumPyro model and guide, what builds both, and the fit that joins them with parameters."""
