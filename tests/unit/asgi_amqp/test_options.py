"""Options: what is wrong is refused, in words that say what to write."""

import re
import ssl
from pathlib import Path
from urllib.parse import quote

import channels
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_amqp import AMQPChannelLayer, ConfigurationError
from asgi_amqp.options import Durable, Options, Target, checked, durable_options

HERE = (Target.parse("amqp://h"),)
TLS = "amqps://user:SECRET@h"


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
        ("amqps://h", "h", 5671, "/"),
        ("amqp://u:p@[::1]:99/v", "::1", 99, "v"),
        ("amqp://u:p@[::1]/%2F", "::1", 5672, "/"),
    ],
)
def test_what_a_url_may_leave_out(url, host, port, vhost):
    target = Target.parse(url)
    assert (target.host, target.port, target.vhost) == (host, port, vhost)


def test_who_a_url_does_not_name_is_guest():
    target = Target.parse("amqp://h")
    assert (target.user, target.password, target.tls) == ("guest", "guest", False)
    assert str(target) == "h:5672"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("amqp://u:SECRET#x@h/v", "%23"),
        ("amqp://u:SECRET?x@h/v", "%3F"),
        ("amqp://u:SEC@RET@h/v", "percent-encode"),
        ("http://u:SECRET@h", "starts with amqp"),
        ("u:SECRET@h", "starts with amqp"),
        ("amqp://u:SECRET/x@h/v", "percent-encode"),
        ("amqp://u:SECRET@/v", "reads amqp"),
        ("amqp://u:SECRET@h:port/v", "reads amqp"),
        ("amqp://", "reads amqp"),
        (b"amqp://u:SECRET@h", "not a bytes"),
        (None, "not a NoneType"),
    ],
)
def test_a_url_that_is_wrong_is_refused_without_repeating_it(url, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        Target.parse(url)
    assert "SEC" not in str(caught.value)


def test_a_target_does_not_show_its_password():
    target = Target.parse("amqp://user:SECRET@h/v")
    assert "SECRET" not in f"{target} {target!r} {Options((target,), 'x')!r}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": []}, r"url: write at least one amqp\[s\]://"),
        ({"url": ["amqp://h", 7]}, "not a int"),
        ({"url": 7}, "not a int"),
        ({"url": "amqp://a:b#c@d"}, "%23"),
        ({"url": "amqp://h:99999/"}, "A port is from 1 to 65535"),
        ({"url": "amqp://h:0/"}, "A port is from 1 to 65535"),
        ({"url": "amqp://h:\u00b2/"}, "A port is from 1 to 65535"),
        ({"prefix": "a b"}, "prefix='a b': write at most 50 of letters"),
        ({"prefix": "x" * 51}, "at most 50"),
        ({"prefix": ""}, "prefix='': write"),
        ({"prefix": 7}, "prefix=7: write"),
        ({"prefix": "\u0663\u0664"}, "at most 50 of letters"),
        ({"prefix": "mysite\n"}, "at most 50 of letters"),
        ({"prefix": "amq.mine"}, "amq. is the broker's own, write another"),
        ({"prefix": "amq"}, "amq. is the broker's own, write another"),
        ({"name": None}, "name=None: write a string"),
        ({"durable": None}, r"durable=None: write a list of globs, \['jobs'\], or a mapping, \{'jobs'"),
        ({"durable": 5}, "durable=5: write a list of globs"),
        ({"durable": b"jobs"}, "durable=b'jobs': write a list of globs"),
        ({"durable": [5]}, r"durable: 5 is no glob, write a list of globs, \['jobs'\], or a mapping"),
        ({"durable": [["jobs"]]}, r"durable: \['jobs'\] is no glob"),
        ({"durable": {5: {}}}, "durable: 5 is no glob"),
        ({"durable": {"a": None}}, r"durable\['a'\]: write a mapping"),
        ({"durable": {"a": {5: 1}}}, r"durable\['a'\]: write a mapping"),
        ({"durable": "jobs"}, r"durable='jobs': write a list, \['jobs'\]"),
        (
            {"durable": {"a": {"bath": 1}}},
            r"durable\['a'\]: write a mapping of some of batch, delivery_limit",
        ),
        ({"durable": {"a": 5}}, r"durable\['a'\]: write a mapping"),
        ({"durable": {"a": {"batch": 0}}}, r"durable\['a'\]: batch=0: write a whole number of at least 1"),
        ({"durable": {"a": {"batch": None}}}, "batch=None: write a whole number of at least 1"),
        ({"durable": {"a": {"max_bytes": 999}}}, "max_bytes=999: write a whole number of at least 1000"),
        ({"durable": {"a": {"max_bytes": None}}}, "max_bytes=None: write"),
        ({"durable": {"a": {"delivery_limit": 0}}}, "delivery_limit=0: write a whole number of at least 1"),
        ({"durable": {"a": {"delivery_limit": True}}}, "delivery_limit=True: write a whole number"),
        ({"durable": {"a": {"max_length": 1.5}}}, "max_length=1.5: write a whole number"),
        ({"durable": {"a": {"ttl": 0}}}, "ttl=0: write a number of at least 0.001"),
        ({"durable": {"a": {"single": "yes"}}}, "single='yes': write True or False"),
        ({"expiry": 0}, "expiry=0: write a number from 0.001 to"),
        ({"expiry": "60"}, "expiry='60': write a number"),
        ({"expiry": float("nan")}, "expiry=nan: write a number"),
        ({"expiry": float("inf")}, "expiry=inf: write a number"),
        ({"group_expiry": -1}, "group_expiry=-1: write"),
        ({"timeout": None}, "timeout=None: write a number"),
        ({"capacity": 0}, "capacity=0: write a whole number of at least 1"),
        ({"capacity": 1.5}, "capacity=1.5: write a whole number"),
        ({"channel_capacity": {"jobs*": -5}}, r"channel_capacity\['jobs\*'\]=-5: write a whole number"),
        ({"channel_capacity": 5}, r"channel_capacity=5: write a mapping, \{'jobs\*': 1000\}"),
        ({"channel_capacity": [("a", 3)]}, r"channel_capacity=\[\('a', 3\)\]: write a mapping"),
        ({"channel_capacity": {5: 3}}, "channel_capacity: 5 is no glob, write a mapping"),
        ({"channel_capacity": {re.compile(b"a"): 3}}, "is no glob, write a mapping"),
        ({"overflow": "drop"}, "overflow='drop': write 'drop-newest' or 'drop-oldest'"),
        ({"gap_type": 7}, "gap_type=7: write the type of a message, or None"),
        ({"buffer_bytes": 999}, "buffer_bytes=999: write a whole number of at least 1000"),
        ({"queue_bytes": 1e6}, "queue_bytes=1000000.0: write a whole number"),
        ({"max_message_bytes": 0}, "max_message_bytes=0: write a whole number of at least 1000"),
        ({"heartbeat": -1}, "heartbeat=-1: write a whole number from 0 to 3600"),
        ({"heartbeat": 0.5}, "heartbeat=0.5: write a whole number from 0 to 3600"),
        ({"heartbeat": 3601}, "heartbeat=3601: write a whole number from 0 to 3600"),
        ({"connect_timeout": 0}, "connect_timeout=0: write a number from 0.01 to 3600"),
        ({"auth": "plaintext"}, "auth='plaintext': write 'plain' .* or 'external'"),
        ({"ssl_context": ssl.create_default_context(), "ssl_ca": "ca.pem"}, "ssl_context: .*drop ssl_ca"),
        ({"ssl_context": ssl.create_default_context(), "ssl_cert": "c.pem"}, "drop ssl_cert$"),
        (
            {"ssl_context": ssl.create_default_context(), "ssl_cert": "c", "ssl_key": "k"},
            "drop ssl_cert and ssl_key",
        ),
        ({"url": TLS, "ssl_context": ssl.create_default_context(), "ssl_key": "k"}, "drop ssl_key"),
        ({"url": TLS, "ssl_context": "SECRET"}, "ssl_context: write an ssl.SSLContext or None, not a str"),
        ({"url": TLS, "ssl_key": "key.pem"}, "ssl_key: write ssl_cert, too"),
        ({"url": TLS, "ssl_ca": 5}, "ssl_ca=5: write the path of a file, or None"),
        ({"url": TLS, "ssl_ca": ""}, "ssl_ca='': write the path of a file, or None"),
        ({"ssl_ca": "ca.pem"}, "ssl_ca: no url is one of TLS, write amqps://"),
        ({"ssl_cert": "c.pem", "ssl_key": "k.pem"}, "ssl_cert and ssl_key: no url is one of TLS"),
        ({"ssl_context": ssl.create_default_context()}, "ssl_context: no url is one of TLS"),
    ],
)
def test_a_wrong_option_is_refused_in_words_that_say_what_to_write(options, words):
    with pytest.raises(ConfigurationError, match=words) as caught:
        AMQPChannelLayer(**options)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"url": ["amqp://a", "amqps://b"]},
        {"prefix": "x" * 50},
        {"durable": ["jobs", "mail.*"]},
        {"durable": {"a": {"batch": 1, "delivery_limit": None, "max_length": 1, "max_bytes": 1000}}},
        {"durable": {"a": {"ttl": 0.001, "single": True}}},
        {"expiry": 0.001, "group_expiry": 10 * 365 * 86400, "timeout": 0.5},
        {"capacity": 1, "channel_capacity": {"jobs*": 1}},
        {"buffer_bytes": 1000, "queue_bytes": 1000, "max_message_bytes": 1000},
        {"heartbeat": 0, "connect_timeout": 0.01},
        {"heartbeat": 3600, "connect_timeout": 3600},
        {"url": ["amqp://a", "amqps://b"], "ssl_ca": Path("ca.pem"), "ssl_cert": "c.pem"},
        {"url": TLS, "ssl_cert": "c.pem", "ssl_key": "k.pem", "channel_capacity": None},
        {"prefix": "amqp", "durable": (glob for glob in ["jobs"]), "channel_capacity": {re.compile("a"): 1}},
        {"overflow": "drop-oldest", "gap_type": "layer.gap", "auth": "external"},
    ],
)
def test_what_is_just_allowed_is_taken(options):
    AMQPChannelLayer(**options)


@pytest.mark.parametrize("value", [True, "1", None, 0.9, 10.1, float("nan")])
def test_a_number_is_checked_for_kind_and_range(value):
    with pytest.raises(ConfigurationError, match=r"x=.*: write a number from 1 to 10"):
        checked("x", value, 1, 10)
    checked("x", 1, 1, 10)
    checked("x", 10.0, 1, 10)


def test_channels_that_is_too_old_is_refused_with_the_least_that_works(monkeypatch):
    for version in ("4.2.0", "4.1.0", "3.0.5"):
        monkeypatch.setattr(channels, "__version__", version)
        with pytest.raises(ConfigurationError, match=rf"Channels {version} is too old: 4\.2"):
            AMQPChannelLayer()
    monkeypatch.setattr(channels, "__version__", "4.2.1")
    AMQPChannelLayer()


def test_durable_globs_match_whole_names():
    patterns = durable_options({"jobs": {"batch": 7}, "mail.*": {}})
    assert [options for pattern, options in patterns if pattern.match("jobs")] == [Durable(batch=7)]
    assert [options for pattern, options in patterns if pattern.match("mail.out")] == [Durable()]
    assert not any(pattern.match("jobs2") or pattern.match("a.mail.x") for pattern, _ in patterns)
    assert durable_options(()) == []


# TLS


def test_without_tls_there_is_no_context():
    assert Options(HERE, "x").tls is None


def test_a_context_of_ones_own_is_used_as_it_is():
    context = ssl.create_default_context()
    assert Options((Target.parse(TLS),), "x", ssl_context=context).tls is context


def test_tls_is_verified_by_default():
    context = Options((Target.parse("amqps://h"),), "x").tls
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_an_authority_that_is_not_there_is_an_error_of_configuration():
    options = Options((Target.parse("amqps://h"),), "x", ssl_ca="/nowhere/ca.pem")
    with pytest.raises(ConfigurationError, match=r"ssl_ca /nowhere/ca\.pem: cannot read authorities"):
        _ = options.tls


def test_an_authority_that_is_none_is_an_error_of_configuration(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    options = Options((Target.parse("amqps://h"),), "x", ssl_ca=str(tmp_path / "ca.pem"))
    with pytest.raises(ConfigurationError, match="cannot read authorities"):
        _ = options.tls


def test_a_certificate_without_its_key_is_an_error_of_configuration(tmp_path):
    (tmp_path / "cert.pem").write_text("no certificate")
    options = Options((Target.parse("amqps://h"),), "x", ssl_cert=str(tmp_path / "cert.pem"))
    with pytest.raises(ConfigurationError, match=r"cert\.pem, ssl_key None: no certificate with its key"):
        _ = options.tls


def test_a_connection_is_named_by_its_role():
    named = Options(HERE, "asgi").named("publishes")
    assert named.name.startswith("asgi publishes ")
    assert named.targets == HERE
