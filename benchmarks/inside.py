"""Scripts in a Django process of a running stack, beside uwsgi's."""

import subprocess


class Inside:
    """A script in the container of uwsgi; `said` is its first line. It goes on when told."""

    def __init__(self, project, script, *arguments):
        self.process = subprocess.Popen(
            ["docker", "exec", "--interactive", "--env", "DJANGO_SETTINGS_MODULE=project.settings",
             f"{project}-uwsgi-1", "python", "-c", f"import django; django.setup()\n{script}",
             *map(str, arguments)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said = self.process.stdout.readline().split()
        if not self.said:
            raise SystemExit("a script in uwsgi's container failed: its error is above")

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def ask(self, line):
        """A line to it, and its next as words."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().split()

    def end(self):
        """Until it has finished by itself."""
        self.process.communicate()

    def close(self):
        self.process.kill()
        self.end()
