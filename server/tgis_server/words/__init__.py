"""How values are written for people: process names, times, byte counts, URLs."""
