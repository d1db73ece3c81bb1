"""From the durable queue to the log: each event once, in order."""
