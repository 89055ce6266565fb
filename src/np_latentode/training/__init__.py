"""How parameters come about."""
