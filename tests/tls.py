"""TLS for the synchronous websocket client, which reads in one thread while another writes."""

import ssl


def for_threads(context: ssl.SSLContext) -> ssl.SSLContext:
    """The context, kept to TLS 1.2.

    With 1.3 the server's session tickets come just when the first request goes out: two threads may then be
    in one OpenSSL connection. Measured on Python 3.11: one handshake in a hundred or so is never answered,
    because nginx never sees the request; with 1.2 none of 150. The page, the asynchronous clients and the
    tests of routes speak 1.3.
    """
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context
