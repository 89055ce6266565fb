"""Whole studies, from data to scores and figures: what the commands of `np-latentode` run."""
