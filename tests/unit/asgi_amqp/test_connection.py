import struct
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands
from pamqp import frame as frames
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from asgi_amqp import ConfigurationError
from asgi_amqp.connection import Options, Publisher, Target


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_every_user_password_and_vhost_can_be_written(user, password, vhost):
    try:
        parts = [quote(part, safe="") for part in (user, password, vhost)]
    except UnicodeEncodeError:
        return
    target = Target.parse("amqps://{}:{}@broker.test/{}".format(*parts))
    assert (target.user, target.password, target.vhost) == (user, password, vhost)
    assert (target.host, target.port, target.tls) == ("broker.test", 5671, True)


@pytest.mark.parametrize(
    ("url", "host", "port", "vhost"),
    [
        ("amqp://h", "h", 5672, "/"),
        ("amqp://h:99/", "h", 99, "/"),
        ("amqp://u:p@[::1]:99/v", "::1", 99, "v"),
        ("amqp://u:p@[::1]/%2F", "::1", 5672, "/"),
    ],
)
def test_what_a_url_may_leave_out(url, host, port, vhost):
    target = Target.parse(url)
    assert (target.host, target.port, target.vhost) == (host, port, vhost)


@pytest.mark.parametrize(
    "url",
    ["amqp://u:SECRET#x@h/v", "amqp://u:SECRET?x@h/v", "amqp://u:SEC@RET@h/v", "http://u:SECRET@h",
     "u:SECRET@h",
     "amqp://u:SECRET/x@h/v", "amqp://u:SECRET@/v", "amqp://u:SECRET@h:port/v"],
)  # fmt: skip
def test_a_url_that_is_wrong_is_refused_without_repeating_it(url):
    with pytest.raises(ConfigurationError) as caught:
        Target.parse(url)
    assert "SEC" not in str(caught.value)


def test_a_target_does_not_show_its_password():
    target = Target.parse("amqp://user:SECRET@h/v")
    assert "SECRET" not in f"{target} {target!r} {Options((target,), 'x')!r}"


def test_an_authority_that_is_not_there_is_an_error_of_configuration():
    options = Options((Target.parse("amqps://h"),), "x", ssl_ca="/nowhere/ca.pem")
    with pytest.raises(ConfigurationError, match=r"ssl_ca /nowhere/ca\.pem"):
        _ = options.tls


class FakeWire:
    number = 3


@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 20_000])
@pytest.mark.parametrize("keys", [["g.a"], ["g.a", "g.b", "p.c"]])
@pytest.mark.parametrize("mandatory", [False, True])
@pytest.mark.parametrize("persistent", [False, True])
def test_frames_of_a_publish_read_as_pamqp_reads_them(size, keys, mandatory, persistent):
    publisher = Publisher(FakeWire(), "exchange", 4096)
    for tag in (1, 2):  # the second from what was kept
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        data = publisher.frames(body, keys, persistent=persistent, mandatory=mandatory)
        seen = []
        while data:
            length = struct.unpack(">I", data[3:7])[0] + 8
            assert length <= 4096
            _, channel, frame = frames.unmarshal(data[:length])
            assert channel == 3
            seen.append(frame)
            data = data[length:]
        method, header, *bodies = seen
        assert isinstance(method, commands.Basic.Publish)
        assert (method.exchange, method.routing_key, method.mandatory) == ("exchange", keys[0], mandatory)
        assert isinstance(header, ContentHeader)
        assert header.body_size == size
        assert header.properties.delivery_mode == (2 if persistent else 1)
        assert (header.properties.headers or {}).get("CC", []) == keys[1:]
        assert header.properties.message_id == (str(tag) if mandatory else None)
        assert all(isinstance(frame, ContentBody) for frame in bodies)
        assert b"".join(frame.value for frame in bodies) == body
        assert publisher.tag == tag
