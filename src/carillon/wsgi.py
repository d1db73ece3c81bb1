"""What uwsgi serves: the pages and the REST API."""

import os

from django.core.wsgi import get_wsgi_application

from carillon.process.environment import SETTINGS_MODULE

os.environ.setdefault("DJANGO_SETTINGS_MODULE", SETTINGS_MODULE)
application = get_wsgi_application()
