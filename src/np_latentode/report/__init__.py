"""What people and ArviZ look at."""
