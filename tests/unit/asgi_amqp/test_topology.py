"""Names and arguments of what is declared, and where an event goes."""

import pytest

from asgi_amqp import AMQPChannelLayer
from asgi_amqp.codec import encode_target
from asgi_amqp.options import Durable
from asgi_amqp.topology import NO_LIMIT, Topology, process_of

TOPOLOGY = Topology("asgi", 60.0)


def test_a_channel_is_what_its_name_says():
    layer = AMQPChannelLayer(
        durable={"jobs": {}, "mail.*": {"batch": 1, "ttl": 5}}, channel_capacity={"small.*": 2}
    )
    local = layer.destination("specific.cafe01!xyz")
    assert (local.key, local.confirmed, local.queue) == ("p.cafe01", False, None)
    assert (local.lane, local.most, local.target) == ("", 0, encode_target("specific.cafe01!xyz"))
    plain = layer.destination("small.things")
    assert (plain.key, plain.lane, plain.confirmed) == ("c.small.things", "c.small.things", True)
    assert (plain.most, plain.queue.arguments["x-max-length"]) == (1, 2)
    jobs, mail = layer.destination("jobs"), layer.destination("mail.out")
    assert jobs.queue.arguments["x-queue-type"] == mail.queue.arguments["x-queue-type"] == "quorum"
    assert (mail.most, mail.queue.arguments["x-message-ttl"]) == (1, 5000)
    assert (jobs.most, jobs.key) == (Durable().batch, "d.jobs")
    assert jobs.queue.arguments["x-dead-letter-routing-key"] == jobs.queue.dead
    group = layer.group_destination("news")
    assert (group.key, group.confirmed, group.queue) == ("g.news", False, None)


def test_every_queue_says_its_type():
    """A virtual host may have another type as its default, where a capacity is not exact."""
    normal = TOPOLOGY.normal_queue("jobs", 10)
    for arguments in (
        normal.arguments,
        TOPOLOGY.process_arguments("queue", 1000),
        TOPOLOGY.gap_arguments(),
    ):
        assert arguments["x-queue-type"] == "classic"
    assert TOPOLOGY.durable_queue("jobs", Durable()).arguments["x-queue-type"] == "quorum"


def test_a_normal_queue_refuses_at_its_capacity_and_lives_longer_than_its_messages():
    queue = TOPOLOGY.normal_queue("jobs", 10)
    assert (queue.name, queue.key, queue.dead) == ("asgi.c.jobs", "c.jobs", "")
    assert (queue.arguments["x-max-length"], queue.arguments["x-overflow"]) == (10, "reject-publish")
    assert queue.arguments["x-message-ttl"] == 60_000
    assert queue.arguments["x-expires"] == 240_000


def test_a_process_queue_refuses_nothing_and_tells_of_what_it_dropped():
    name = TOPOLOGY.process_queue("cafe", 7)
    arguments = TOPOLOGY.process_arguments(name, 1000)
    assert name == "asgi.p.cafe.7"
    assert (arguments["x-overflow"], arguments["x-max-length-bytes"]) == ("drop-head", 1000)
    assert arguments["x-message-ttl"] == 60_000
    assert arguments["x-dead-letter-routing-key"] == TOPOLOGY.gap_queue(name) == "asgi.p.cafe.7.gap"
    assert TOPOLOGY.gap_arguments()["x-max-length"] == 1


def test_each_generation_has_a_queue_of_its_own():
    assert TOPOLOGY.process_queue("cafe", 1) != TOPOLOGY.process_queue("cafe", 2)


def test_a_durable_queue_has_what_its_options_say():
    queue = TOPOLOGY.durable_queue("jobs", Durable())
    arguments = queue.arguments
    assert (queue.name, queue.key, queue.dead) == ("asgi.d.jobs", "d.jobs", "asgi.d.jobs.dead")
    assert (arguments["x-overflow"], arguments["x-delivery-limit"]) == ("reject-publish", 20)
    assert arguments["x-max-length-bytes"] == Durable().max_bytes
    assert not {"x-single-active-consumer", "x-max-length", "x-message-ttl"} & set(arguments)
    options = Durable(delivery_limit=None, max_length=5, single=True, ttl=0.5)
    arguments = TOPOLOGY.durable_queue("jobs", options).arguments
    assert arguments["x-delivery-limit"] == NO_LIMIT
    assert (arguments["x-max-length"], arguments["x-single-active-consumer"]) == (5, True)
    assert arguments["x-message-ttl"] == 500


def test_an_expiry_is_at_least_a_millisecond():
    assert Topology("asgi", 0.0001).expiry_ms == 1


def test_what_is_sent_to_a_process_itself_has_an_empty_target():
    control = TOPOLOGY.to_control("cafe")
    assert (control.key, control.target) == ("p.cafe", encode_target(""))


@pytest.mark.parametrize("name", ["a.b.cafe!x", "cafe!x", "p.cafe!x"])
def test_process_of(name):
    assert process_of(name) == "cafe"


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


def test_many_names_do_not_fill_the_memory():
    layer = AMQPChannelLayer()
    for number in range(25_000):
        layer.destination(f"specific.cafe!{number}")
        layer.destination(f"normal.{number}")
        layer.group_destination(f"g{number}")
    assert layer.destination.cache_info().currsize <= 10_000
    assert layer.group_destination.cache_info().currsize <= 10_000
    assert len(layer._queues) <= 10_000
