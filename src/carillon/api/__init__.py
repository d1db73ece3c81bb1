"""The REST API: publish, accounts, connections, positions in answers, health."""
