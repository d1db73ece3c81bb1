"""Rooms where members talk: an application that Carillon runs. docs/how-to/your-app.md explains it."""
