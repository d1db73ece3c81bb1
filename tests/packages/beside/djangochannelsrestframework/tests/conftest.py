"""Django for the tests of djangochannelsrestframework: the sdist has the tests and not what they stand on."""

from django.conf import settings


def pytest_configure():
    settings.configure(
        SECRET_KEY="of a test",
        INSTALLED_APPS=[
            *("django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"),
            *("channels", "tests"),
        ],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3"}},
    )  # fmt: skip
