"""Runs the processes of one server and says why they ended. Knows no model code."""
