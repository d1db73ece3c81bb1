"""What is measured beside what, and the versions of the others."""

OURS, CORE, PUBSUB, RABBIT, SOCKETIO = KINDS = (
    "carillon",
    "redis core",
    "redis pubsub",
    "channels_rabbitmq",
    "socket.io",
)
_REDIS = ["channels-redis==4.3.*", "redis[hiredis]==5.2.*", "msgpack", "daphne==4.2.*"]
PINS = {
    CORE: _REDIS,
    PUBSUB: _REDIS,
    RABBIT: ["channels-rabbitmq==4.0.1", "daphne==4.2.*"],
    SOCKETIO: _REDIS,  # of its publisher; the server's stand in socketio/package.json
}
