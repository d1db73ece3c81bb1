"""Static files are named by the hash of what is in them, so that caches may keep them for ever."""

from django.conf import settings
from django.contrib.staticfiles.storage import ManifestStaticFilesStorage
from django.urls import get_script_prefix


class HashedStorage(ManifestStaticFilesStorage):
    """Hashed names, also inside the `import` statements of ES modules."""

    support_js_module_import_aggregation = True

    @property
    def base_url(self) -> str:
        """Below the path that a proxy shows us at, which a request knows and the settings do not."""
        return get_script_prefix()[:-1] + settings.STATIC_URL
