import gc

from prometheus_client import REGISTRY, generate_latest

from asgi_amqp import AMQPChannelLayer, Loss
from asgi_amqp.metrics import Stats


def test_counters_are_shown_by_prefix_and_reason():
    layer = AMQPChannelLayer(prefix="metricstest")
    layer.stats.sent = 7
    layer.stats.confirm_took(0.003)
    heard = []
    layer.on_loss.append(heard.append)
    layer.stats.lose("overflow", 3, "c")
    layer.stats.lose("reconnect", None)
    text = generate_latest(REGISTRY).decode()
    assert 'asgi_amqp_sent_total{prefix="metricstest"} 7.0' in text
    assert 'asgi_amqp_lost_total{prefix="metricstest",reason="overflow"} 3.0' in text
    assert 'asgi_amqp_lost_total{prefix="metricstest",reason="reconnect"} 1.0' in text
    assert 'asgi_amqp_confirm_seconds_bucket{le="0.005",prefix="metricstest"} 1.0' in text
    assert 'asgi_amqp_confirm_seconds_bucket{le="0.0025",prefix="metricstest"} 0.0' in text
    assert heard == [Loss("overflow", 3, "c"), Loss("reconnect", None, None)]


def test_two_layers_of_one_prefix_are_one_series():
    layers = [AMQPChannelLayer(prefix="twice") for _ in range(2)]
    for number, layer in enumerate(layers):
        layer.stats.sent = 7 + number
        layer.stats.lose("overflow", 3)
        layer.stats.confirm_took(0.003)
    text = generate_latest(REGISTRY).decode()
    lines = [line.partition("}")[0] for line in text.splitlines() if 'prefix="twice"' in line]
    assert len(lines) == len(set(lines))
    assert 'asgi_amqp_sent_total{prefix="twice"} 15.0' in text
    assert 'asgi_amqp_lost_total{prefix="twice",reason="overflow"} 6.0' in text
    assert 'asgi_amqp_confirm_seconds_count{prefix="twice"} 2.0' in text


def test_a_layer_that_is_gone_is_no_longer_shown():
    layer = AMQPChannelLayer(prefix="shortlived")
    assert "shortlived" in generate_latest(REGISTRY).decode()
    del layer
    gc.collect()
    assert "shortlived" not in generate_latest(REGISTRY).decode()


def test_a_hook_that_raises_stops_nobody(caplog):
    """It would stop what met the loss: a reconnect, say."""
    stats, heard = Stats(), []
    stats.hooks += [lambda loss: 1 / 0, heard.append]
    stats.lose("overflow", 2, "c")
    assert heard == [Loss("overflow", 2, "c")]
    assert stats.lost == {"overflow": 2}
    assert "A hook of on_loss raised" in caplog.text


def test_a_loss_of_unknown_size_counts_as_one():
    stats = Stats()
    for count in (None, None, 3):
        stats.lose("reconnect", count)
    assert stats.lost == {"reconnect": 5}


def test_latencies_are_counted_by_their_bound():
    stats = Stats()
    for seconds in (0.0, 0.001, 0.0011, 5.0, 5.1):
        stats.confirm_took(seconds)
    assert stats.latency_counts[:2] == [2, 1]
    assert stats.latency_counts[-2:] == [1, 1]
    assert sum(stats.latency_counts) == 5
    assert stats.latency_sum == 10.1021
