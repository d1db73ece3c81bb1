import pytest

from asgi_amqp import AMQPChannelLayer, ConfigurationError
from asgi_amqp.topology import process_of


def test_a_channel_is_what_its_name_says():
    layer = AMQPChannelLayer(
        durable={"jobs": {}, "mail.*": {"batch": 1, "ttl": 5}}, channel_capacity={"small.*": 2}
    )
    local = layer.destination("specific.cafe01!xyz")
    assert (local.key, local.confirmed, local.queue) == ("p.cafe01", False, None)
    plain = layer.destination("small.things")
    assert plain.confirmed
    assert (plain.most, plain.queue.arguments["x-max-length"]) == (1, 2)
    jobs, mail = layer.destination("jobs"), layer.destination("mail.out")
    assert jobs.queue.arguments["x-queue-type"] == mail.queue.arguments["x-queue-type"] == "quorum"
    assert (mail.most, mail.queue.arguments["x-message-ttl"]) == (1, 5000)
    assert jobs.queue.arguments["x-dead-letter-routing-key"] == jobs.queue.dead


def test_process_of():
    assert process_of("a.b.cafe!x") == "cafe"


@pytest.mark.parametrize("name", ["", "a b", "ä", "x" * 100, None, 7, b"bytes", "a!b!c"])
def test_names_are_validated(name):
    layer = AMQPChannelLayer()
    with pytest.raises(TypeError):
        layer.destination(name)
    with pytest.raises(TypeError):
        layer.group_destination(name)


def test_a_group_has_no_exclamation_mark():
    with pytest.raises(TypeError):
        AMQPChannelLayer().group_destination("a!b")


@pytest.mark.parametrize(
    "options",
    [
        {"durable": {"a": {"bath": 1}}},
        {"prefix": "a b"},
        {"prefix": "x" * 51},
        {"url": []},
        {"url": "amqp://a:b#c@d"},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigurationError):
        AMQPChannelLayer(**options)


def test_many_names_do_not_fill_the_memory():
    layer = AMQPChannelLayer()
    for number in range(25_000):
        layer.destination(f"specific.cafe!{number}")
        layer.group_destination(f"g{number}")
    for remembered in (layer.destination, layer.group_destination):
        assert remembered.cache_info().currsize <= 10_000
