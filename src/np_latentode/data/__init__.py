"""Observations, their times and units, and the choice of what the guide sees."""
