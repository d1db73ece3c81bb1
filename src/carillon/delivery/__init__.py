"""Delivery: from an accepted event to the frame in each socket.

    emit -> durable queue -> relay (runworker) -> event stream -> tail (one per daphne process) -> hub ->
    sockets

Pure parts, no Django and no broker: `position`, `event`, `forms`, `window`, `seen`, `hub`, `wheel`.
"""
