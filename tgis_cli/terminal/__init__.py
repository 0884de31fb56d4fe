"""What commands share on a terminal: progress, errors and exit codes, stop signals, the help of options."""
