import gc

from prometheus_client import REGISTRY, generate_latest

from asgi_amqp import AMQPChannelLayer, Loss


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


def test_a_layer_that_is_gone_is_no_longer_shown():
    layer = AMQPChannelLayer(prefix="shortlived")
    assert "shortlived" in generate_latest(REGISTRY).decode()
    del layer
    gc.collect()
    assert "shortlived" not in generate_latest(REGISTRY).decode()
