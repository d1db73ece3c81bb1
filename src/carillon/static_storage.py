"""Static files are named by the hash of what is in them, so that caches may keep them for ever."""

from django.contrib.staticfiles.storage import ManifestStaticFilesStorage


class HashedStorage(ManifestStaticFilesStorage):
    """Hashed names, also inside the `import` statements of ES modules."""

    support_js_module_import_aggregation = True
