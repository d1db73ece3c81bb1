"""What the sockets tell of: that somebody came or went. Who it was, the REST API tells those who may know."""

from carillon.notifications import Family, register

register(Family("connections", ("changed",)))
