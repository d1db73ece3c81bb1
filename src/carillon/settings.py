"""Django settings. What differs between machines comes from the environment; the rest is here."""

from carillon import __version__
from carillon.process import environment

env = environment.load()

SECRET_KEY = env.secret_key
SECRET_KEY_FALLBACKS = env.secret_key_fallbacks
# Never on, not even in development, where the debug page alone is shown (DEBUG_PAGE of CARILLON).
DEBUG = False
ALLOWED_HOSTS = env.allowed_hosts

INSTALLED_APPS = [
    # Before channels: both have a command `runworker`, and the first app listed wins.
    "carillon",
    "channels",
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    # rest_framework is not among them: only its browsable API has templates and static files, and it is off.
    "drf_spectacular",
    "drf_spectacular_sidecar",  # the files of /api/v2/docs/: a reader's browser asks no other host
]

MIDDLEWARE = [
    # Around everything: what is answered is counted.
    "carillon.api.metrics.MeasureMiddleware",
    "carillon.api.policy.PolicyMiddleware",
    # Before the rest: the position is read before anything else is.
    "carillon.api.position.PositionMiddleware",
    "carillon.accounts.logins.RefusalMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "carillon.accounts.sessions.cookie_middleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "carillon.wsgi.application"
ASGI_APPLICATION = "carillon.asgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    }
]

# Database ------------------------------------------------------------------------------------------

if env.database_host == "sqlite":  # unit tests only
    DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
else:
    DATABASES = {
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": env.database_host,
            "PORT": env.database_port,
            "NAME": env.database_name,
            "USER": env.database_user,
            "PASSWORD": env.database_password,
            "CONN_MAX_AGE": 60,
            # A connection that a restarted server closed is noticed at the start of a request.
            "CONN_HEALTH_CHECKS": True,
            "OPTIONS": {
                "connect_timeout": 5,
                # A connection whose other end has vanished (a host gone, a container's new address) is given
                # up in seconds: without this a request waits for TCP's quarter of an hour.
                "tcp_user_timeout": 5000,  # milliseconds
                "keepalives_idle": 10,
                "keepalives_interval": 2,
                "keepalives_count": 3,
                "application_name": "carillon",
                # No query of ours is slow by design: one that is should fail and free its worker.
                "options": "-c statement_timeout=30s -c idle_in_transaction_session_timeout=60s",
                # Between hosts: the server must prove that it is the one named.
                **(
                    {"sslmode": "verify-full", "sslrootcert": env.database_tls_ca}
                    if env.database_tls_ca
                    else {}
                ),
            },
        }
    }

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Delivery ------------------------------------------------------------------------------------------

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "asgi_amqp.AMQPChannelLayer",
        "CONFIG": {
            "url": env.amqp_urls,
            "prefix": "carillon",
            # One runworker at a time takes from it, others stand by: the queue's order is what clients see.
            # A lost connection counts as a delivery of everything in hand, so a limit would throw away events
            # that were accepted.
            "durable": {
                "notifications": {"single": True, "delivery_limit": None},
                # Of carillon.tasks: a message is one task to be run, by whoever is free.
                "carillon.tasks.*": {"batch": 1, "delivery_limit": None},
            },
            "expiry": 60,
            "ssl_ca": env.amqp_tls_ca,
        },
    }
}

# Carillon's own: `carillon.conf` says what there is, and what holds where nothing is said here.
CARILLON = {
    "WEBSOCKET_URLCONF": "project.routing",
    "METRICS_DIRECTORY": env.metrics_directory,
    "METRICS_ADDRESSES": env.metrics_addresses,
    "TRACES_ENDPOINT": env.traces_endpoint,
    "TRACES_RATIO": env.traces_ratio,
    "DEBUG_PAGE": env.debug_page,
    **env.identity,
}

# Who may come in -----------------------------------------------------------------------------------

# Where a page of yours is: Carillon has none.
LOGIN_URL = "/"
LOGIN_REDIRECT_URL = "/"
# The gate is the first: who may try a password is decided before it is looked at.
AUTHENTICATION_BACKENDS = [
    "carillon.accounts.logins.Gate",
    "django.contrib.auth.backends.ModelBackend",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 12},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "carillon.accounts.audit.PasswordChanges"},
]

SESSION_COOKIE_NAME = env.session_cookie_name
SESSION_COOKIE_AGE = 8 * 3600
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
# Development also serves plain HTTP on 8013, where a browser would drop a secure cookie.
SESSION_COOKIE_SECURE = not env.development
CSRF_COOKIE_SECURE = not env.development
# The page and Tower's clients read this cookie to fill in X-CSRFToken and xrftoken.
CSRF_COOKIE_HTTPONLY = False
CSRF_COOKIE_SAMESITE = "Lax"
CSRF_TRUSTED_ORIGINS = env.trusted_origins
CSRF_FAILURE_VIEW = "carillon.api.errors.csrf_failure"

SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

# Sizes: nginx limits the body first; this is for whoever reaches uwsgi in another way.
DATA_UPLOAD_MAX_MEMORY_SIZE = 16 * 2**20

CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [
        # Bearer first: its name goes into WWW-Authenticate, so that no browser opens a password dialogue.
        "carillon.accounts.authentication.BearerAuthentication",
        "rest_framework.authentication.SessionAuthentication",
        "carillon.accounts.authentication.PasswordAuthentication",
    ],
    "DEFAULT_PERMISSION_CLASSES": [
        "rest_framework.permissions.IsAuthenticated",
        "carillon.accounts.permissions.TokenScope",
    ],
    "DEFAULT_RENDERER_CLASSES": ["carillon.api.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["carillon.api.parsers.JSONParser"],
    "DEFAULT_PAGINATION_CLASS": "carillon.api.pagination.Pagination",
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
    "EXCEPTION_HANDLER": "carillon.api.errors.exception_handler",
    # nginx passes the client's address as REMOTE_ADDR; X-Forwarded-For is not ours to believe.
    "NUM_PROXIES": 0,
    "UNAUTHENTICATED_USER": "django.contrib.auth.models.AnonymousUser",
}

SPECTACULAR_SETTINGS = {
    "TITLE": "Carillon",
    "DESCRIPTION": "Events and who may hear of them. Live notifications: /websocket/.",
    "VERSION": __version__,
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",
    "POSTPROCESSING_HOOKS": [
        "drf_spectacular.hooks.postprocess_schema_enums",
        "carillon.api.errors.document_errors",
    ],
}

# Static files --------------------------------------------------------------------------------------

STATIC_URL = "/static/"
STATIC_ROOT = env.static_root
# What users upload: nginx serves it, from a folder that all processes share and a backup has.
MEDIA_URL = "/media/"
MEDIA_ROOT = "/var/lib/carillon/media"
# nginx reads them as another user, whatever the umask of who writes.
FILE_UPLOAD_PERMISSIONS = 0o644
FILE_UPLOAD_DIRECTORY_PERMISSIONS = 0o755
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "carillon.api.static_storage.HashedStorage"},
}

# The rest ------------------------------------------------------------------------------------------

LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
APPEND_SLASH = True

# To stderr, one line each. Nothing here writes a query string or a header: tokens travel in both.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "json": {"()": "carillon.logs.JsonFormatter"},
        "text": {"()": "carillon.logs.TextFormatter"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": env.log_format}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        "django": {"handlers": [], "level": "INFO", "propagate": True},
        # 4xx answers are the client's affair, and nginx has them in its access log.
        "django.request": {"level": "ERROR"},
        # A foreign Host, or a thousand fields: a 400, and no news that is worth a traceback.
        "django.security": {"level": "CRITICAL"},
        "django.security.csrf": {"level": "WARNING"},
        "daphne": {"level": "WARNING"},
        "aio_pika": {"level": "WARNING"},
        "aiormq": {"level": "CRITICAL"},  # its errors carry the broker's URL
    },
}
