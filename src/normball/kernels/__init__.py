"""Loops over memory. See README.md in this folder."""
