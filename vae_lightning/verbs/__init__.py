"""One file for each command beyond Lightning's: its help, its arguments, its work."""
