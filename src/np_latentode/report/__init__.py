"""Figures, and data trees for ArviZ."""
