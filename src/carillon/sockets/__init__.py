"""One client: the protocol, a session, its rights, who is there; server-sent events; a project's own
consumers."""
