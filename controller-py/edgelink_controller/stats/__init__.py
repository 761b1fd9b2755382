"""Figures for the status page."""
