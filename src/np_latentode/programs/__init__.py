"""The NumPyro model and guide, their defaults, and the fit that joins them with parameters."""
