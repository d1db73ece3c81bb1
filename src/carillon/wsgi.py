"""What uwsgi serves: the pages and the REST API."""

import os

from django.core.wsgi import get_wsgi_application

from carillon.process.environment import SETTINGS_MODULE
from carillon.text import guarded

os.environ.setdefault("DJANGO_SETTINGS_MODULE", SETTINGS_MODULE)
application = guarded(get_wsgi_application())

from carillon import tracing  # noqa: E402
from carillon.conf import conf  # noqa: E402  (needs Django's apps)
from carillon.metrics import names, shared  # noqa: E402
from carillon.process import launcher  # noqa: E402

if conf.METRICS_DIRECTORY is not None:
    shared.forget(conf.METRICS_DIRECTORY, launcher.processes())

# uWSGI's master has the application and serves nobody: each of its workers, forked from it, has its metrics.
shared.start_in_forks(conf.METRICS_DIRECTORY, names.UWSGI)
os.register_at_fork(after_in_child=lambda: tracing.start(names.UWSGI))
