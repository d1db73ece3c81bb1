"""A TCP proxy between browser and server whose cable a test can pull."""

import contextlib
import select
import socket
import threading


class Cable:
    """Forwards `127.0.0.1:port` to `target` (host, port).

    `cut()` resets what stands and refuses what comes; `swallow()` lets everything stand and passes nothing
    on, as a dead router does; `mend()` forwards again.
    """

    def __init__(self, target):
        self._target = target
        self._cut = False
        self._swallows = False
        self._pairs = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self):
        with self._lock:
            self._cut = True
            pairs = list(self._pairs)
        for pair in pairs:
            self._hang_up(pair)

    def swallow(self):
        self._swallows = True

    def mend(self):
        # What was swallowed is lost for good: connections that missed a part of the stream cannot go on.
        if self._swallows:
            self.cut()
        self._swallows = self._cut = False

    def close(self):
        self._stopped.set()
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @staticmethod
    def _hang_up(pair):
        for one in pair:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        while not self._stopped.is_set():
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                near.close()
                continue
            threading.Thread(target=self._forward, args=(near,), daemon=True).start()

    def _forward(self, near):
        try:
            far = socket.create_connection(self._target, timeout=10)
        except OSError:
            near.close()
            return
        pair = (near, far)
        with self._lock:
            if self._cut:
                near.close()
                far.close()
                return
            self._pairs.add(pair)
        others = {near: far, far: near}
        try:
            while not self._stopped.is_set():
                ready, _, _ = select.select(pair, (), (), 1)
                for one in ready:
                    data = one.recv(65536)
                    if not data:
                        return
                    if not self._swallows:
                        others[one].sendall(data)
        except OSError:
            return
        finally:
            with self._lock:
                self._pairs.discard(pair)
            near.close()
            far.close()
