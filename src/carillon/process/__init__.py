"""How a process starts: its environment, the launcher, probes, the check of a whole installation."""
