"""A session engine of a project's own: sessions in a dictionary."""

from django.contrib.sessions.backends.base import CreateError, SessionBase

kept = {}


class SessionStore(SessionBase):
    def load(self):
        return self.decode(kept[self.session_key]) if self.session_key in kept else {}

    def exists(self, session_key):
        return session_key in kept

    def create(self):
        self._session_key = self._get_new_session_key()
        self.save(must_create=True)
        self.modified = True

    def save(self, must_create=False):
        if self.session_key is None:
            return self.create()
        if must_create and self.exists(self.session_key):
            raise CreateError
        kept[self.session_key] = self.encode(self._get_session(no_load=must_create))

    def delete(self, session_key=None):
        kept.pop(session_key or self.session_key, None)
