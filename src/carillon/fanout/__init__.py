"""From the log to this process: the tail, the window, the hub, and who is still behind."""
