"""Runs the parts together: on one machine, later on a Ray cluster."""
