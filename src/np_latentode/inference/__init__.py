"""The posterior of z0 beyond the guide."""
