"""How values are written for people: names of processes, points in time, numbers of bytes, URLs."""
