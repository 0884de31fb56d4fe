"""Runs the processes of one server and reports why they ended. Imports no model code."""
