# Carillon's callback plugin: a run of ansible-playbook, sent to the API while it happens.
#
# One file, standard library and Ansible only, so that it can be copied anywhere. From top to bottom: what is
# pure (texts, the bounded outbox), the API, the thread that sends, the tap that hears what Ansible prints,
# and the callback itself.
#
# The one rule: the run comes first. Nothing here waits for the network while a playbook runs, nothing grows
# without bound, and no error here is an error of the run.

from __future__ import annotations

import atexit
import collections
import contextlib
import datetime
import http.client
import itertools
import json
import math
import os
import random
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import uuid

from ansible import constants as C
from ansible.plugins.callback import CallbackBase
from ansible.utils.color import parsecolor

DOCUMENTATION = """
    name: carillon
    type: notification
    short_description: Sends the run to Carillon while it happens
    description:
      - Creates a job at the Carillon API, sends plays, tasks, results, their output and the recap as
        events in batches, and sets the job's final status. Who may see the job can watch the run live.
      - The run is never held up - a background thread sends, the buffer is bounded, and an API that is
        away or slow costs one warning.
      - Results of tasks with C(no_log) are sent without their content and without their output.
    requirements:
      - enable it in C(callbacks_enabled)
    options:
      url:
        description: Address of Carillon, such as V(https://carillon.example.org). Without it nothing is sent.
        type: str
        env: [{name: CARILLON_URL}]
        ini: [{section: callback_carillon, key: url}]
      token:
        description: API token that may read and write. Not read from ansible.cfg, no place for secrets.
        type: str
        env: [{name: CARILLON_TOKEN}]
      token_file:
        description: File that holds the token, used when O(token) is not given.
        type: path
        env: [{name: CARILLON_TOKEN_FILE}]
        ini: [{section: callback_carillon, key: token_file}]
      ca_cert:
        description: File of the CA certificates to trust (PEM), instead of the machine's own.
        type: path
        env: [{name: CARILLON_CA_CERT}]
        ini: [{section: callback_carillon, key: ca_cert}]
      verify:
        description: Check the server's certificate.
        type: bool
        default: true
        env: [{name: CARILLON_VERIFY}]
        ini: [{section: callback_carillon, key: verify}]
      job_name:
        description: Name of the job. Default is the playbook's file name.
        type: str
        env: [{name: CARILLON_JOB_NAME}]
        ini: [{section: callback_carillon, key: job_name}]
      team:
        description: Id of the team whose members may see the job beside its owner.
        type: int
        env: [{name: CARILLON_TEAM}]
        ini: [{section: callback_carillon, key: team}]
      batch_events:
        description: Most events in one request.
        type: int
        default: 200
        env: [{name: CARILLON_BATCH_EVENTS}]
        ini: [{section: callback_carillon, key: batch_events}]
      flush_interval:
        description: Seconds that an event may wait for others to share its request.
        type: float
        default: 0.2
        env: [{name: CARILLON_FLUSH_INTERVAL}]
        ini: [{section: callback_carillon, key: flush_interval}]
      buffer_bytes:
        description:
          - Most bytes of unsent events. Beyond, the oldest unsent output is dropped, and a notice in
            the output counts it.
        type: int
        default: 8388608
        env: [{name: CARILLON_BUFFER_BYTES}]
        ini: [{section: callback_carillon, key: buffer_bytes}]
      request_timeout:
        description: Seconds that one request may take.
        type: float
        default: 10
        env: [{name: CARILLON_REQUEST_TIMEOUT}]
        ini: [{section: callback_carillon, key: request_timeout}]
      send_content:
        description:
          - Send of a task's result also what was run and what was read, C(cmd) and C(content). Both are
            arguments or files, and either may hold secrets.
        type: bool
        default: false
        env: [{name: CARILLON_SEND_CONTENT}]
        ini: [{section: callback_carillon, key: send_content}]
      finish_timeout:
        description:
          - Seconds that the end of a run may wait for its last events to be sent. The last two of them, and
            a quarter at most, are kept for the job's final status.
        type: float
        default: 10
        env: [{name: CARILLON_FINISH_TIMEOUT}]
        ini: [{section: callback_carillon, key: finish_timeout}]
"""

CENSORED = "the output has been hidden due to the fact that 'no_log: true' was specified for this result"
STDOUT_PIECE = 64 * 1024  # characters of output in one event; longer output goes in several
RESULT_LIMIT = 32 * 1024  # bytes of a task's result in event_data
SLIM = 1024  # an event of at most this size is not worth slimming
BATCH_BYTES = 256 * 1024
FIRST_PAUSE = 0.5  # seconds
LONGEST_PAUSE = 15.0
CREATE_TIMEOUT = 30.0  # longer than other requests: creating twice would leave an orphan behind
CLOSING = 2.0  # seconds of a deadline, and a quarter of it at most, that events leave to the final status
HURRY = 3.0  # seconds that a run which was told to stop still spends on saying so

# A fork while a thread holds an import lock would leave it locked in the child: what sockets import late is
# imported now.
"localhost".encode("idna")


# Pure parts -------------------------------------------------------------------------------------------------


def split_output(text, limit=STDOUT_PIECE):
    """
    Cuts output into pieces of at most `limit` characters, after a line's end where there is one. At least one
    piece.
    """
    pieces = []
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start, start + limit) + 1 or start + limit
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces


def clean(value, depth=0):
    """
    The same value as JSON and a database can hold it: NUL characters made visible, and str() of what JSON
    does not know, such as NaN, or of what lies too deep, such as a circle.
    """
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if depth < 50:
        if isinstance(value, dict):
            return {clean(str(key)): clean(item, depth + 1) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(item, depth + 1) for item in value]
    return clean(str(value)[:1000])


def dump(value):
    """JSON text of anything."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, skipkeys=True, allow_nan=False)
    except (ValueError, RecursionError):
        text = None
    if text is None or "\\u0000" in text:
        text = json.dumps(clean(value), ensure_ascii=False)
    return text


UNWANTED = ("invocation", "diff", "exception", "stdout_lines", "stderr_lines")
CONTENT = ("cmd", "content")  # a command's words, a file's bytes


def trim_result(result, send_content=False):
    """
    A task's result as event_data may carry it: a dict without what is internal, doubled (lines, loop results
    that had events of their own), large or likely to hold secrets (facts contain the environment, invocation
    the arguments, and so does what was run or read, unless it is asked for), at most RESULT_LIMIT bytes of
    JSON.
    """
    kept = {}
    for key, value in result.items():
        if key in UNWANTED or key.startswith("_ansible") or (key in CONTENT and not send_content):
            continue
        if key == "ansible_facts" and isinstance(value, dict):
            kept[key] = f"{len(value)} facts, not sent"
        elif key == "results" and isinstance(value, list):
            kept[key] = f"{len(value)} items, sent as events of their own"
        else:
            kept[key] = value
    if len(dump(kept).encode("utf-8", "replace")) <= RESULT_LIMIT:
        return kept
    sizes = {key: len(dump(value)) for key, value in kept.items()}
    return {
        key: value if sizes[key] <= 1024 else f"{sizes[key]} bytes, not sent" for key, value in kept.items()
    }


def pause_before(attempt, rng=random.random):
    """
    Seconds to wait before the next attempt: full jitter under a ceiling that doubles from FIRST_PAUSE to
    LONGEST_PAUSE.
    """
    return rng() * min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt, 10))


class Outbox:
    """
    The unsent events in order, bounded in bytes. They are numbered only when they are taken, so that what had
    to be dropped leaves no gap: `counter` counts from 1 without holes, `start_line`/`end_line` count the
    lines of the output that was sent. A `secret` (JSON leaves its characters as they are) is starred out
    wherever it stands. Not locked: its user is.
    """

    def __init__(self, limit, secret=""):
        self.limit = limit
        self._secret = secret
        self.bytes = 0
        self.counter = 0
        self.line = 0
        self.dropped_events = 0  # whole events, in all
        self._entries = collections.deque()  # (JSON text of the event without its numbers, lines)
        self._slim = 0  # so many entries on the left have nothing more to lose
        self._lost_events = 0  # since the last notice
        self._lost_bytes = 0
        self._closed = False

    def __len__(self):
        return len(self._entries)

    def put(self, event):
        """
        Adds an event. Its `stdout` loses its last line end: an event is `end_line - start_line` whole lines.
        """
        if self._closed:
            self.counter += 1
            return
        stdout = event.get("stdout", "")
        lines = stdout.count("\n")
        if stdout.endswith("\n"):
            event = dict(event, stdout=stdout[:-1])
        elif stdout:
            lines += 1
        text = dump(event)
        if self._secret:
            text = text.replace(self._secret, "********")
        self._append(text, lines)
        while self.bytes > self.limit and self._entries:
            self._drop()

    def take(self, most_events, most_bytes):
        """
        Removes the oldest events, at least one if there is any, and numbers them.

        :return: list of JSON texts, each one event
        """
        taken = []
        if self._lost_events or self._lost_bytes:
            taken.append(self._number(*self._notice()))
        size = 0
        while self._entries and len(taken) < most_events:
            text, lines = self._entries[0]
            size += len(text)
            if taken and size > most_bytes:
                break
            self._entries.popleft()
            self.bytes -= len(text)
            self._slim = max(0, self._slim - 1)
            taken.append(self._number(text, lines))
        return taken

    def close(self):
        """Lets go of all events. From now on they are only counted."""
        self._closed = True
        self.counter += len(self._entries)
        self._entries.clear()
        self.bytes = 0

    def _append(self, text, lines):
        self._entries.append((text, lines))
        self.bytes += len(text)

    def _number(self, text, lines):
        self.counter += 1
        start, self.line = self.line, self.line + lines
        numbers = dump({"counter": self.counter, "start_line": start, "end_line": self.line})
        return f"{numbers[:-1]}, {text[1:]}"

    def _drop(self):
        """
        Makes room: first the output and results of the oldest events, then the oldest events themselves.
        """
        while self._slim < len(self._entries):
            text, _lines = self._entries[self._slim]
            self._slim += 1
            if len(text) <= SLIM:
                continue
            event = json.loads(text)
            event["stdout"] = ""
            event.get("event_data", {}).pop("res", None)
            slim = dump(event)
            self._entries[self._slim - 1] = (slim, 0)
            self.bytes -= len(text) - len(slim)
            self._lost_bytes += len(text) - len(slim)
            return
        text, _ = self._entries.popleft()
        self.bytes -= len(text)
        self._slim -= 1
        self._lost_events += 1
        self.dropped_events += 1
        self._lost_bytes += len(text)

    def _notice(self):
        events = f" and {self._lost_events} whole events" if self._lost_events else ""
        words = (
            f"[carillon: {self._lost_bytes} bytes of output and results{events} were dropped here: "
            "the API was away for too long]"
        )
        event = {
            "event": "verbose",
            "uuid": str(uuid.uuid4()),
            "created": now(),
            "stdout": words,
            "event_data": {"dropped_events": self._lost_events, "dropped_bytes": self._lost_bytes},
        }
        self._lost_events = self._lost_bytes = 0
        return dump(event), 1


def now():
    return datetime.datetime.now(datetime.UTC).isoformat()


# The API ----------------------------------------------------------------------------------------------------


class Api:
    """
    JSON over one kept-alive connection. Knows nothing of retries. Used by one thread; others may cut().

    :raises ValueError: the address is no http(s) address
    :raises OSError: the CA file cannot be read
    """

    def __init__(self, url, token, ca_cert=None, verify=True):
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no address such as https://carillon.example.org")
        self.url = "{}://{}{}".format(parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"))
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._token = token
        self._context = None
        if parts.scheme == "https":
            self._context = ssl.create_default_context(cafile=ca_cert or None)
            if not verify:
                self._context.check_hostname = False
                self._context.verify_mode = ssl.CERT_NONE
        self._connection = None
        self._cut = False

    def request(self, method, path, body=None, timeout=10.0):
        """
        :param body: JSON text
        :return: (HTTP status, the answer's JSON or None, seconds of its Retry-After or 0)
        :raises OSError, http.client.HTTPException: no answer
        """
        self._cut = False
        while True:
            fresh = self._connection is None
            try:
                return self._exchange(method, path, body, timeout)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                self.close()
                if fresh or self._cut:
                    raise
                # A kept connection that the server had closed meanwhile: ask again on a new one.
            except BaseException:
                self.close()
                raise

    def close(self):
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def cut(self):
        """From another thread: the request that is under way ends now, with an error. One that still connects
        ends by its own timeout: nothing else could be sent there either.
        """
        self._cut = True
        connection = self._connection
        sock = connection.sock if connection is not None else None
        if sock is not None:
            # Not of the TLS one: that forgets its state, which the other thread still uses.
            with contextlib.suppress(OSError):  # it has ended by itself
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _exchange(self, method, path, body, timeout):
        if self._connection is None:
            if self._context is not None:
                connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=timeout, context=self._context
                )
            else:
                connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout)
            self._connection = connection
        self._connection.timeout = timeout
        if self._connection.sock is None:
            self._connection.connect()
            if self._cut:  # meanwhile
                raise ConnectionAbortedError("cut")
        self._connection.sock.settimeout(timeout)
        headers = {
            "Authorization": "Bearer " + self._token,
            "Accept": "application/json",
            "User-Agent": "carillon-callback",
        }
        if body is not None:
            body = body.encode("utf-8", "replace")
            headers["Content-Type"] = "application/json"
        self._connection.request(method, self._prefix + path, body=body, headers=headers)
        response = self._connection.getresponse()
        text = response.read(1024 * 1024)
        if response.will_close or response.read(1):
            self.close()
        later = response.headers.get("Retry-After", "")
        later = int(later) if len(later) < 7 and later.isascii() and later.isdecimal() else 0
        try:
            return response.status, json.loads(text) if text else None, later
        except ValueError:
            return response.status, None, later


def explain(error):
    """Why a request got no answer, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate is not trusted ({error.verify_message}); CARILLON_CA_CERT names the CA to trust"
        )
    if isinstance(error, socket.timeout):
        return "it does not answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return f"{type(error).__name__} {error}"


class GaveUp(Exception):
    """Nothing more will be sent; the text says why."""


class OutOfTime(GaveUp):
    """There was no time left for this; there may be some for what comes last."""


REFUSED = (400, 413, 422)  # something in the events is wrong or too large


class Unwanted(Exception):
    """The API understood a request and does not want it: (status, words)."""


class Sender:
    """
    The thread that creates the job, sends its events in batches and closes it. Everybody else only puts
    events in and, once, finishes. `notices` are words for the user; whoever runs the playbook's callbacks
    shows them.
    """

    def __init__(
        self, api, job, secret, buffer_bytes, batch_events, flush_interval, request_timeout, rng=random.random
    ):
        self.notices = collections.deque(maxlen=20)
        self.job_id = None
        self._api = api
        self._job = job
        self._outbox = Outbox(buffer_bytes, secret)
        self._unanswered = 0  # events of the batch under way
        self._batch_events = max(1, min(batch_events, 1000))
        self._flush_interval = flush_interval
        self._request_timeout = request_timeout
        self._rng = rng
        # Reentrant (Condition's default): a signal handler puts and finishes while its thread may be inside
        # put().
        self._changed = threading.Condition()
        self._final = None  # the status to end with
        self._deadline = None
        self._closing = 0.0  # seconds before it at which the time for events is over
        self._events_under_way = False  # a request that may be cut when that time comes
        self._status = None  # the last one that was set
        self._not_before = 0.0  # an API that is away said that it is back then
        self._done = False
        self._delivered = False
        self._failures = 0  # attempts in a row without success
        self._warned = False
        self._reported = None  # why events are not sent
        self._thread = threading.Thread(target=self._run, name="carillon-sender", daemon=True)

    def start(self):
        self._thread.start()

    @property
    def is_over(self):
        return self._done

    def put(self, event):
        with self._changed:
            if not self._done:
                self._outbox.put(event)
                self._changed.notify_all()

    def finish(self, status, seconds):
        """
        Ends the job with this status once all events are sent; waits for that, but not longer than `seconds`.
        Near the end of them it ends without the rest of the events.

        :return: whether everything arrived
        """
        with self._changed:
            if self._final is None:
                self._final = status
            self._closing = max(0.0, min(CLOSING, seconds / 4))
            self._deadline = deadline = time.monotonic() + seconds
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._done, max(0.0, seconds - self._closing)):
                if self._events_under_way:
                    self._api.cut()
                self._changed.wait_for(lambda: self._done, max(0.0, deadline - time.monotonic()))
            if not self._done:
                self._done = True
                self._report(f"its deadline of {seconds:g} s passed")
            return self._delivered

    def _run(self):
        try:
            self._create()
            try:
                self._set_status("running")
                while True:
                    batch = self._next_batch()
                    if not batch:
                        break
                    self._send(batch)
                self._post_end(self._outbox.counter)
            except OutOfTime as why:
                self._close(str(why))
            except Unwanted as answer:
                if answer.args[0] in (404, 409):  # the job is gone, or somebody else has ended it
                    raise
                self._refused("it answered {} {}".format(*answer.args))
            else:
                self._set_status(self._final, last=True)
                self._delivered = True
        except GaveUp as why:
            self._give_up(str(why))
        except Unwanted as answer:
            self._give_up("it answered {} {}".format(*answer.args))
        except Exception as error:
            self._give_up(f"the sender failed: {type(error).__name__} {error}")
        finally:
            self._api.close()
            with self._changed:
                self._done = True
                self._changed.notify_all()

    def _close(self, why):
        """
        No more events: the job's end, without the rest of them. Their number goes along, so that readers
        learn how many are missing.
        """
        with self._changed:
            number = self._outbox.counter + len(self._outbox)
            wait = self._not_before - time.monotonic()
            if wait > self._seconds_left(last=True):
                raise GaveUp(why)
            self._changed.wait_for(lambda: self._done, max(0.0, wait))
        if self._status is None and self._final == "successful":
            self._set_status("running", last=True)  # the API knows no other way there
        self._set_status(self._final, last=True)
        try:
            self._post_end(number, last=True)
        except (GaveUp, Unwanted):
            pass  # the first reason is the one to tell
        else:
            if not len(self._outbox) + self._unanswered and not self._reported:
                self._delivered = True
                return
        self._give_up(why)

    def _refused(self, why):
        """The API wants no more events of this job. It still hears how the run ends."""
        with self._changed:
            if self._final is None:
                self._report(why)
                self._outbox.close()
                self._changed.wait_for(lambda: self._final is not None)
        self._close(why)

    def _give_up(self, why):
        with self._changed:
            if not self._done:
                self._report(why)
            self._outbox.close()

    def _report(self, why):
        if why == self._reported and self._status == self._final:
            return  # it was said in mid-run, and the status has arrived since
        self._reported = why
        left = len(self._outbox) + self._unanswered
        if self._final is None:
            what = "From here on no events of this run are sent"
        elif left:
            what = f"{left} events at the end of this run were not sent"
        else:
            what = "The end of this run was not sent"
        ended = " Its status was sent." if self._final is not None and self._status == self._final else ""
        self.notices.append(f"{what} to Carillon at {self._api.url}: {why}.{ended}")

    def _create(self):
        answer = self._attempt("POST", "/api/v2/jobs/", dump(self._job), CREATE_TIMEOUT, last=True)
        if not isinstance(answer, dict) or not isinstance(answer.get("id"), int):
            raise GaveUp("what answers there is no Carillon")
        self.job_id = answer["id"]
        self.notices.append(f"job {self.job_id}: {self._api.url}/#/jobs/{self.job_id}")

    def _set_status(self, status, last=False):
        try:
            self._attempt("PATCH", f"/api/v2/jobs/{self.job_id}/", dump({"status": status}), last=last)
        except Unwanted as answer:
            # Of a repeated request the first may have arrived; a job canceled by somebody else stays
            # canceled.
            if answer.args[0] != 409:
                raise
            job = self._attempt("GET", f"/api/v2/jobs/{self.job_id}/", last=last)
            if not isinstance(job, dict) or job.get("status") != status:
                raise
        self._status = status

    def _next_batch(self):
        """The next events as JSON texts; waits for them. Empty: the run is over and everything was taken."""
        with self._changed:
            self._changed.wait_for(lambda: self._outbox or self._final is not None)
            if (
                self._final is None
                and len(self._outbox) < self._batch_events
                and self._outbox.bytes < BATCH_BYTES
            ):
                self._changed.wait_for(
                    lambda: self._final is not None or len(self._outbox) >= self._batch_events,
                    self._flush_interval,
                )
            batch = self._outbox.take(self._batch_events, BATCH_BYTES)
            self._unanswered = len(batch)
            return batch

    def _send(self, batch):
        """
        Sends a batch; one that the API will not have goes event by event, the one it means without its data,
        and if that does not help, without its output.
        """
        try:
            self._post_events(batch)
        except Unwanted as answer:
            if answer.args[0] not in REFUSED:
                raise
            if len(batch) > 1:
                middle = len(batch) // 2
                self._send(batch[:middle])
                self._send(batch[middle:])
                return
            event = json.loads(batch[0])
            event["event_data"] = {
                "refused": "the API did not accept this event's content: {} {}".format(*answer.args)
            }
            try:
                self._post_events([dump(event)])  # its output is often not to blame
            except Unwanted as again:
                if again.args[0] not in REFUSED:
                    raise
                kept = ("counter", "start_line", "end_line", "event", "uuid", "created", "event_data")
                self._post_events([dump({key: event[key] for key in kept if key in event})])
        with self._changed:
            self._unanswered = 0

    def _post_events(self, batch, last=False):
        body = "[{}]".format(", ".join(batch))
        self._attempt("POST", f"/api/v2/jobs/{self.job_id}/events/", body, last=last)

    def _post_end(self, counter, last=False):
        self._post_events([dump({"event": "EOF", "final_counter": counter})], last)

    def _ask(self, method, path, body, timeout, last):
        with self._changed:
            self._events_under_way = not last
        try:
            return self._api.request(method, path, body, timeout)
        finally:
            with self._changed:
                self._events_under_way = False

    def _attempt(self, method, path, body=None, timeout=None, last=False):
        """
        Asks until there is an answer. `last`: it may take the time that events leave.

        :return: the JSON of a 2xx answer
        :raises Unwanted: the API does not want this request
        :raises GaveUp: the token or the certificate is refused
        :raises OutOfTime: there is no time left
        """
        over = "there was no time left" if last else "there was no time left for them"
        for attempt in itertools.count():
            left = self._seconds_left(last)
            if left <= 0:
                raise OutOfTime(over)
            try:
                status, answer, later = self._ask(
                    method, path, body, min(timeout or self._request_timeout, left), last
                )
            except ssl.SSLCertVerificationError as error:
                raise GaveUp(explain(error)) from None
            except (OSError, http.client.HTTPException) as error:
                if not last and self._seconds_left(last) <= 0:  # it was cut, or its timeout was what was left
                    raise OutOfTime(over) from None
                status, why, later = None, explain(error), 0
            else:
                if 200 <= status < 300:
                    self._failures = 0
                    return answer
                detail = answer.get("detail") if isinstance(answer, dict) else None
                if status in (401, 403):
                    raise GaveUp(f"it refuses the token ({status} {detail or ''})")
                if status < 500 and status not in (408, 425, 429):
                    raise Unwanted(
                        status, str(detail or answer or http.client.responses.get(status, ""))[:300]
                    )
                why = f"it answers {status}"
                if status == 429 and detail:  # a quota: it says which
                    why += f" {str(detail)[:300]}"
            not_before = time.monotonic() + later
            if status is None or status >= 500:  # a quota's 429 is about this request alone
                self._not_before = not_before
            self._failures += 1
            if not self._warned and self._deadline is None:  # after its end there is another word for it
                self._warned = True
                self.notices.append(
                    f"Carillon at {self._api.url} is away: {why}. "
                    "The run goes on, its events are kept and sent later."
                )
            with self._changed:
                if self._deadline is None:
                    pause = later + pause_before(attempt, self._rng)
                    self._changed.wait_for(lambda: self._deadline is not None, pause)
                elif self.job_id is None and self._failures > 1:
                    # The API has been away all the time: nobody shall wait for it at the end of the run.
                    raise GaveUp(why)
                else:
                    self._changed.wait(max(0.0, min(pause_before(0, self._rng), self._seconds_left(last))))
                wait = not_before - time.monotonic()
                if wait > max(0.0, self._seconds_left(last)):
                    raise OutOfTime(why)
                if wait > 0:
                    self._changed.wait_for(lambda: False, wait)

    def _seconds_left(self, last=False):
        if self._deadline is None:
            return float("inf")
        return self._deadline - (0.0 if last else self._closing) - time.monotonic()


# What Ansible prints ----------------------------------------------------------------------------------------


class Tap:
    """
    Hears everything that Ansible's display prints, in order. Listening is more truthful than rendering
    results anew: it holds for every stdout callback, option, verbosity, warning and diff. Ansible calls the
    stdout callback before this one, so that at every event its own output is what was heard last.

    Colours are added where the display was asked for one, even if Ansible's own output is no terminal.
    """

    def __init__(self, display, wanted, overflow):
        self.active = True
        self._pid = os.getpid()
        self._wanted = wanted
        self._overflow = overflow
        self._pieces = []
        self._size = 0
        self._lock = threading.RLock()
        self._mute = threading.local()
        self._print = display.display
        display.display = self._display

    def _display(self, msg, color=None, *args, **kwargs):
        self._print(msg, color, *args, **kwargs)
        # Workers hand their text to the parent, whose display comes by here: in them there is nothing to do.
        if self.active and os.getpid() == self._pid and not getattr(self._mute, "on", False):
            try:
                self._hear(msg, color, *args, **kwargs)
            except Exception:
                self.active = False

    def _hear(self, msg, color, stderr=False, screen_only=False, log_only=False, newline=True, caplevel=None):
        if log_only or not self._wanted():
            return
        text = msg.replace("\r\n", "\n")
        ends = text.endswith("\n")
        text = paint(text[:-1] if ends else text, color)
        with self._lock:
            self._pieces.append(text + ("\n" if ends or newline else ""))
            self._size += len(text)
            full = self._size > STDOUT_PIECE
        if full:
            self._overflow()

    def take(self):
        """What was heard since the last time."""
        with self._lock:
            text = "".join(self._pieces)
            self._pieces = []
            self._size = 0
        return text

    def say(self, speak, *args, **kwargs):
        """Prints something of this plugin's own, which is no part of the run's output."""
        self._mute.on = True
        try:
            speak(*args, **kwargs)
        finally:
            self._mute.on = False


def paint(text, color):
    """The text in a colour as Ansible paints it: every line for itself."""
    code = parsecolor(color) if color else None
    if not code:
        return text
    return "\n".join(f"\033[{code}m{line}\033[0m" for line in text.split("\n"))


# The callback -----------------------------------------------------------------------------------------------


def is_secret(task, result=None):
    """
    Whether nothing of a task's result may be told. Before there is a result, a template that may hide counts
    as hiding.
    """
    if result is None:
        return bool(task.no_log)
    return task.no_log is True or bool(result.get("_ansible_no_log")) or "censored" in result


def task_name(task):
    """The name without the role's, which events carry on their own."""
    return str(task.name or task.get_name()).strip()


def is_rescued(task):
    """
    Whether a failure of this task is caught: it stands in the `block` part of a block that has a `rescue`
    part.
    """
    below, block = task, getattr(task, "_parent", None)
    while block is not None:
        if getattr(block, "rescue", None) and any(part._uuid == below._uuid for part in block.block):
            return True
        below, block = block, getattr(block, "_parent", None)
    return False


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "carillon"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, display=None, options=None):
        super().__init__(display=display, options=options)
        self._pid = os.getpid()
        self._api = None
        self._token = ""
        self._sender = None
        self._tap = None
        self._interrupted = None
        self._handlers = {}

    def set_options(self, task_keys=None, var_options=None, direct=None):
        super().set_options(task_keys=task_keys, var_options=var_options, direct=direct)
        try:
            self._token = self._read_token()
            url = self.get_option("url")
            if not url:
                raise ValueError("CARILLON_URL is not set")
            self._api = Api(url, self._token, self.get_option("ca_cert"), self.get_option("verify"))
        except (OSError, ValueError) as error:
            self._disable(f"This run is not sent to Carillon: {error}.")

    def _read_token(self):
        token, path = self.get_option("token"), self.get_option("token_file")
        if not token and path:
            with open(path, encoding="utf-8") as file:
                token = file.read()
        token = (token or "").strip()
        if not token:
            raise ValueError("neither CARILLON_TOKEN nor CARILLON_TOKEN_FILE is set")
        if not token.isascii() or not token.isprintable():
            raise ValueError("the token is no line of printable characters")
        return token

    def _disable(self, words):
        self.disabled = True
        self._display.warning(words)

    # The run's beginning and end

    def v2_playbook_on_start(self, playbook):
        path = playbook._file_name or ""
        ad_hoc = path == "__adhoc_playbook__"
        self._playbook = path
        self._playbook_uuid = str(uuid.uuid4())
        self._play = self._play_uuid = self._role = self._task = self._task_id = ""
        self._event_uuids = {}  # Ansible's id of a play or task -> uuid of the event that started it
        self._started = {}  # (host, task) -> when
        self._secrets = set()  # (host, task) of running tasks with no_log
        if self._api is None:
            return
        name = self.get_option("job_name") or ("ad hoc command" if ad_hoc else os.path.basename(path))
        job = {"name": name[:200], "kind": "ad_hoc_command" if ad_hoc else "job", "status": "pending"}
        if self.get_option("team"):
            job["team"] = self.get_option("team")
        if self._tap is None:
            self._tap = Tap(self._display, self._may_hear, self._pass_on)
            atexit.register(self._on_exit)
        self._sender = Sender(
            self._api,
            job,
            self._token,
            self.get_option("buffer_bytes"),
            self.get_option("batch_events"),
            self.get_option("flush_interval"),
            self.get_option("request_timeout"),
        )
        self._sender.start()
        self._catch_signals()
        self._send("playbook_on_start", 0, uuid_=self._playbook_uuid, parent="")

    def v2_playbook_on_stats(self, stats):
        data = {
            name: dict(getattr(stats, name))
            for name in ("ok", "changed", "dark", "failures", "ignored", "processed", "rescued", "skipped")
        }
        failed = bool(stats.failures or stats.dark)
        self._send("playbook_on_stats", 1, data, parent=self._playbook_uuid, failed=failed, task="")
        self._end("failed" if failed else "successful", self.get_option("finish_timeout"))

    def _end(self, status, seconds):
        sender = self._sender
        if sender is None:
            return
        rest = self._tap.take()
        if rest:
            sender.put(self._event("verbose", 0, {}, stdout=rest, parent=self._playbook_uuid))
        sender.finish(status, seconds)
        self._sender = None
        self._show_notices(sender)
        self._release_signals()

    def _on_exit(self):
        """Ansible ends without having come to its recap: it was told to stop, or it stopped with an error."""
        if os.getpid() == self._pid and self._sender is not None:
            self._end("canceled" if self._interrupted else "error", HURRY)

    def _catch_signals(self):
        # SIGTERM, and the SIGHUP of a terminal that is closed, end Ansible without any Python code running
        # afterwards: the job would run for ever. One that is ignored (nohup) ends nothing.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            try:
                previous = signal.getsignal(number)
                if previous not in (self._on_signal, signal.SIG_IGN):
                    signal.signal(number, self._on_signal)
                    self._handlers[number] = previous
            except ValueError:  # not the main thread: whoever runs Ansible there has signals of their own
                return

    def _release_signals(self):
        for number, previous in self._handlers.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, previous)
        self._handlers = {}

    def _on_signal(self, number, frame):
        previous = self._handlers.get(number, signal.SIG_DFL)
        if os.getpid() == self._pid:
            self._interrupted = number
            if number != signal.SIGINT:
                try:
                    self._end("canceled", min(HURRY, self.get_option("finish_timeout")))
                except Exception:  # such as a print that the signal interrupted: stopping is what counts now
                    self._sender = None
        if callable(previous):
            previous(number, frame)
        elif previous != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    # Plays and tasks

    def v2_playbook_on_play_start(self, play):
        self._play = play.get_name().strip()
        self._task = self._role = self._task_id = ""
        self._play_uuid = self._new_uuid(play._uuid)
        self._send(
            "playbook_on_play_start",
            1,
            {"pattern": str(play.hosts)},
            uuid_=self._play_uuid,
            parent=self._playbook_uuid,
        )

    def v2_playbook_on_no_hosts_matched(self):
        self._send("playbook_on_no_hosts_matched", 2, parent=self._play_uuid)

    def v2_playbook_on_no_hosts_remaining(self):
        self._send("playbook_on_no_hosts_remaining", 2, parent=self._play_uuid)

    def v2_playbook_on_task_start(self, task, is_conditional):
        self._start_task(task)

    def v2_playbook_on_handler_task_start(self, task):
        self._start_task(task, handler=True)

    def _start_task(self, task, **data):
        self._task = task_name(task)
        self._task_id = task._uuid
        self._role = task._role.get_name() if task._role else ""
        data.update(self._about(task))
        self._send(
            "playbook_on_task_start", 2, data, uuid_=self._new_uuid(task._uuid), parent=self._play_uuid
        )

    def v2_playbook_on_include(self, included_file):
        data = {
            "included_file": included_file._filename,
            "hosts": [host.get_name() for host in included_file._hosts],
        }
        self._send("playbook_on_include", 2, data, parent=self._play_uuid)

    def v2_playbook_on_notify(self, handler, host):
        data = {"host": host.get_name(), "handler": handler.get_name()}
        self._send("playbook_on_notify", 2, data, parent=self._play_uuid)

    def v2_playbook_on_vars_prompt(self, varname, *args, **kwargs):
        self._send("playbook_on_vars_prompt", 1, {"varname": varname}, parent=self._playbook_uuid)

    # Results

    def v2_runner_on_start(self, host, task):
        key = (host.get_name(), task._uuid)
        self._started[key] = time.monotonic()
        if is_secret(task):
            self._secrets.add(key)
        data = dict(self._about(task), host=host.get_name())
        self._send("runner_on_start", 3, data, parent=self._event_uuids.get(task._uuid, self._play_uuid))

    def v2_runner_on_ok(self, result):
        self._result("runner_on_ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        data = {
            "ignore_errors": bool(ignore_errors),
            "rescued": not ignore_errors and is_rescued(result.task),
        }
        self._result("runner_on_failed", result, failed=not ignore_errors, **data)

    def v2_runner_on_skipped(self, result):
        self._result("runner_on_skipped", result)

    def v2_runner_on_unreachable(self, result):
        self._result("runner_on_unreachable", result, failed=not result.task.ignore_unreachable)

    def v2_runner_on_async_poll(self, result):
        self._result("runner_on_async_poll", result, last=False)

    def v2_runner_on_async_ok(self, result):
        self._result("runner_on_async_ok", result, last=False)

    def v2_runner_on_async_failed(self, result):
        self._result("runner_on_async_failed", result, last=False)

    def v2_runner_item_on_ok(self, result):
        self._result("runner_item_on_ok", result, last=False)

    def v2_runner_item_on_failed(self, result):
        self._result("runner_item_on_failed", result, last=False, failed=not result.task.ignore_errors)

    def v2_runner_item_on_skipped(self, result):
        self._result("runner_item_on_skipped", result, last=False)

    def v2_runner_retry(self, result):
        self._result("runner_retry", result, last=False)

    def v2_on_file_diff(self, result):
        self._result("runner_on_file_diff", result, last=False)

    def _result(self, name, result, last=True, failed=False, **data):
        """Sends one result. `last`: the host is done with the task."""
        task, host, content = result.task, result.host.get_name(), result.result
        key = (host, task._uuid)
        data.update(self._about(task), host=host)
        if key in self._started:
            data["duration"] = round(time.monotonic() - self._started[key], 3)
        secret = is_secret(task, content)
        if secret:
            data["res"] = {"censored": CENSORED, "changed": bool(content.get("changed"))}
            # What was printed is not trusted: the error of a hidden result may quote it.
            self._tap.take()
            stdout = self._censored_line(name, result, ignored=not failed)
        else:
            data["res"] = trim_result(content, self.get_option("send_content"))
            stdout = None
        if name.startswith("runner_item_") and not secret:
            data["item"] = str(self._get_item_label(content))[:1000]
        if last:
            self._started.pop(key, None)
            self._secrets.discard(key)
        self._send(
            name,
            3,
            data,
            parent=self._event_uuids.get(task._uuid, self._play_uuid),
            failed=failed,
            changed=bool(content.get("changed")) and not name.endswith("skipped"),
            stdout=stdout,
            task=self._task if task._uuid == self._task_id else task_name(task),
        )

    def _censored_line(self, name, result, ignored):
        """The line that the default stdout callback prints for a hidden result, and nothing else of it."""
        item = " => (item=(censored due to no_log))" if name.startswith("runner_item_") else ""
        host = f"[{self.host_label(result)}]"
        word = name.rpartition("_")[2]
        if word == "ok":
            word, color = ("changed", C.COLOR_CHANGED) if result.result.get("changed") else ("ok", C.COLOR_OK)
            return paint(f"{word}: {host}{item}", color) + "\n"
        if word == "skipped":
            return paint(f"skipping: {host}{item}", C.COLOR_SKIP) + "\n"
        if word in ("failed", "unreachable"):
            line = f"failed: {host}{item}" if item else f"fatal: {host}: {word.upper()}!"
            line = paint(f'{line} => {{"censored": "{CENSORED}"}}', C.COLOR_ERROR) + "\n"
            return line + (paint("...ignoring", C.COLOR_SKIP) + "\n" if ignored and not item else "")
        return ""

    # Events

    def _about(self, task):
        return {
            "task_uuid": self._event_uuids.get(task._uuid, str(task._uuid)),
            "task_action": str(task.action),
            "task_path": task.get_path() or "",
        }

    def _new_uuid(self, ansible_id):
        """
        A uuid for the event that starts a play or task. Ansible starts the same one again for every serial
        batch.
        """
        self._event_uuids[ansible_id] = str(uuid.uuid4())
        return self._event_uuids[ansible_id]

    def _may_hear(self):
        """
        What workers print while a task with no_log runs (arguments at -vvv) is not heard; what callbacks
        print is.
        """
        if not self._secrets:
            return True
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name == "send_callback":
                return True
            frame = frame.f_back
        return False

    def _pass_on(self):
        """
        Much was printed between two events (-vvvv): it becomes an event of its own, or nothing while it may
        be a secret.
        """
        if self._secrets:
            self._tap.take()
        else:
            self._send("verbose", 3, parent=self._play_uuid)

    def _send(
        self,
        name,
        level,
        data=None,
        uuid_=None,
        parent="",
        failed=False,
        changed=False,
        stdout=None,
        task=None,
    ):
        sender = self._sender
        if sender is None:
            return
        if stdout is None:
            stdout = self._tap.take()
        if sender.is_over:
            self._show_notices(sender)
            return
        # The environment is a fact, and in it is this plugin's token: starred out before a cut could divide
        # it.
        pieces = split_output(stdout.replace(self._token, "********"))
        for piece in pieces[:-1]:
            sender.put(self._event("verbose", level, {}, stdout=piece, parent=parent))
        data = dict(data or {}, playbook=self._playbook, playbook_uuid=self._playbook_uuid)
        if self._play_uuid:
            data.update(play=self._play, play_uuid=self._play_uuid)
        event = self._event(name, level, data, uuid_, parent, failed, changed, pieces[-1], task)
        sender.put(event)
        self._show_notices(sender)

    def _event(
        self, name, level, data, uuid_=None, parent="", failed=False, changed=False, stdout="", task=None
    ):
        return {
            "event": name,
            "uuid": uuid_ or str(uuid.uuid4()),
            "parent_uuid": parent,
            "created": now(),
            "event_level": level,
            "play": self._play[:1000],
            "role": self._role[:1000],
            "task": (self._task if task is None else task)[:1000],
            "failed": failed,
            "changed": changed,
            "stdout": stdout,
            "event_data": data,
        }

    def _show_notices(self, sender):
        while sender.notices:
            words = sender.notices.popleft()
            if words.startswith("job "):
                self._tap.say(self._display.display, "Carillon: " + words, stderr=True)
            else:
                self._tap.say(self._display.warning, words)
