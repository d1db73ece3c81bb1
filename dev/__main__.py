"""`python3 -m dev <command>`; the Makefile's targets are these."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from dev import config as configuration
from dev import development, engine, stack, yours
from dev.output import Failure, fail, say


def _config() -> configuration.Config:
    return configuration.load()


def dev(_: list[str]) -> int:
    development.dev(_config())
    return 0


def observe(_: list[str]) -> int:
    from dev import observe

    observe.start(_config())
    return 0


def down(_: list[str]) -> int:
    stack.down(_config(), volumes=False)
    return 0


def clean(_: list[str]) -> int:
    development.clean(_config())
    return 0


def logs(services: list[str]) -> int:
    stack.become(_config(), "logs", "--follow", "--tail", "100", *services)
    return 0


def shell(services: list[str]) -> int:
    stack.become(_config(), "exec", *(services[:1] or ["uwsgi"]), "bash")
    return 0


def token(_: list[str]) -> int:
    from dev import account

    say(account.new_token(_config(), "make token"))
    return 0


def _with_tools() -> dict[str, str]:
    """What .dev/env says of the running stack; goes on in the tools' environment."""
    from dev import account

    config = _config()
    values = account.read(config.environment_file)
    if not values:
        raise Failure(f"{config.environment_file} does not exist: run `make dev` first")
    development.enter_tools(config)
    return values


def watch(arguments: list[str]) -> int:
    """The terminal client on the running stack; `arguments` are its subscriptions."""
    values = {**os.environ, **_with_tools(), "PYTHONPATH": str(configuration.ROOT / "src")}
    os.execve(sys.executable, [sys.executable, "-m", "carillon.client", "watch", *arguments], values)  # noqa: S606
    return 0


def demo(arguments: list[str]) -> int:
    """A real playbook run, sent to the page by the callback plugin."""
    values = _with_tools()
    say(f"Watch it at {values['CARILLON_URL']}\n")
    playbook = os.path.join(sys.prefix, "bin", "ansible-playbook")
    os.chdir(configuration.ROOT / "demo")
    argv = [playbook, "site.yml", *arguments]
    os.execve(playbook, argv, {**os.environ, **values, "ANSIBLE_CONFIG": "ansible.cfg"})  # noqa: S606
    return 0


def _test_config() -> configuration.Config:
    from dev import testing

    return configuration.load(project=testing.PROJECT, state=testing.STATE)


def everything(_: list[str]) -> int:
    config = _test_config()
    if engine.check():
        # What a cut-off run left behind goes first: it would hold the ports.
        stack.down(config, volumes=True)
    from dev import linting, testing

    config = config.moved(ports=testing.free_ports(config))
    development.prepare(config)
    testing.enter(config)
    return testing.everything(config, linting.sources())


def unit(_: list[str]) -> int:
    from dev import testing

    testing.enter(_test_config())
    return testing.unit()


def documentation(_: list[str]) -> int:
    from dev import testing

    config = _test_config()
    testing.enter(config)
    failed = testing.documentation(config)
    if not failed:
        say(f"Read it: {configuration.ROOT / testing.SITE / 'index.html'}")
    return failed


def lint(_: list[str]) -> int:
    from dev import linting, testing

    testing.enter(_test_config())
    return testing.run(linting.everything(), {})


def clean_test(_: list[str]) -> int:
    development.clean(_test_config(), everything=True)
    return 0


def _production(name: str) -> dict[str, Callable[[list[str]], int]]:
    """The commands of `make production` or `make cluster`."""

    def load() -> configuration.Config:
        from dev import production

        return production.load(cluster=name == "cluster")

    def up(_: list[str]) -> int:
        from dev import production

        production.start(load(), target=name)
        return 0

    def down(_: list[str]) -> int:
        stack.down(load(), volumes=False)
        return 0

    def clean(_: list[str]) -> int:
        development.clean(load())
        return 0

    return {name: up, f"{name}-down": down, f"{name}-clean": clean}


def _operation(name: str) -> Callable[[list[str]], int]:
    def run(arguments: list[str]) -> int:
        from dev import operations

        operations.verb(name, *arguments[:1])
        return 0

    return run


def make_quadlets(_: list[str]) -> int:
    development.enter_tools(_config())
    from quadlets import make

    make.start()
    return 0


def make_bundle(_: list[str]) -> int:
    config = _config()
    development.enter_tools(config)
    from dev import bundle

    bundle.make()
    return 0


def _enter_release() -> None:
    """Go on in the tests' environment, which has what makes the artifacts."""
    from dev import testing

    config = _test_config()
    testing.enter(config)
    testing.ensure_programs(config, ("graphviz", "minisign"))


def make_release(_: list[str]) -> int:
    """`make release`: signed with the key that CARILLON_RELEASE_KEY names."""
    _enter_release()
    from release import make

    key = os.environ.get(make.KEY)
    if not key:
        raise Failure(f"{make.KEY} is not set: name the maintainers' secret key (minisign)")
    try:
        folder = make.release(
            configuration.ROOT,
            configuration.ROOT / "dist",
            Path(key).expanduser(),
            with_images=os.environ.get(make.IMAGES) != "no",
        )
    except make.ReleaseError as error:
        raise Failure(str(error)) from None
    say(f"{folder}: {len(list(folder.iterdir()))} files; `{folder}/verify --key …` proves them")
    return 0


def rebuild_release(arguments: list[str]) -> int:
    """`verify --rebuild` of a release: what the commit does not build again."""
    _enter_release()
    from release import make

    try:
        problems = make.rebuild(configuration.ROOT, arguments[0], Path(arguments[1]))
    except make.ReleaseError as error:
        raise Failure(str(error)) from None
    say("\n".join(problems))
    return 1 if problems else 0


def test_production(arguments: list[str]) -> int:
    from dev import production, production_testing

    config = production_testing.load()
    if engine.check():
        # What a cut-off run left behind goes first: it would hold the ports.
        production_testing.clean(config)
    development.prepare(config, production.IMAGES)
    production_testing.enter(config)
    only = [argument for argument in arguments if argument != "--full"]
    return production_testing.test(config, full="--full" in arguments, only=only)


def clean_test_production(_: list[str]) -> int:
    from dev import production_testing

    production_testing.clean(production_testing.load())
    return 0


def new(arguments: list[str]) -> int:
    """`make new`: a repository of a team's own."""
    from carillon import new

    return new.main(arguments)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "dev": dev,
    "observe": observe,
    "down": down,
    "clean": clean,
    "logs": logs,
    "shell": shell,
    "token": token,
    "demo": demo,
    "watch": watch,
    "test": everything,
    "test-unit": unit,
    "test-clean": clean_test,
    "lint": lint,
    "docs": documentation,
    **_production("production"),
    **_production("cluster"),
    **{
        f"production-{name}": _operation(name)
        for name in ("backup", "restore", "prune", "upgrade", "rollback", "rotate", "refresh")
    },
    "quadlets": make_quadlets,
    "new": new,
    "bundle": make_bundle,
    "release": make_release,
    "release-rebuild": rebuild_release,
    "test-production": test_production,
    "test-production-clean": clean_test_production,
}


def main(arguments: list[str]) -> int:
    commands = {**COMMANDS, **yours.COMMANDS} if configuration.YOURS else COMMANDS
    if not arguments or arguments[0] not in commands:
        raise Failure(f"usage: python3 -m dev {'|'.join(commands)}")
    if configuration.YOURS and arguments[0] not in yours.WITHOUT_CODE:
        yours.put(locked=arguments[0] != "lock")
    os.chdir(configuration.ROOT)
    return commands[arguments[0]](arguments[1:])


def run(arguments: list[str]) -> int:
    """`main`, whose failures are lines."""
    try:
        return main(arguments)
    except Failure as failure:
        return fail(failure)
    except FileNotFoundError as error:
        # A program of which there was no need to ask before.
        return fail(Failure(f"{error.filename or error}: not found; `make dev` installs what is missing"))
    except subprocess.TimeoutExpired as error:
        command = error.cmd if isinstance(error.cmd, str) else shlex.join(map(str, error.cmd))
        return fail(
            Failure(
                f"`{command}` did not end within {error.timeout:g} s: see whether the engine answers "
                "(`docker info`) and the disk has room, then run this again"
            )
        )
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `make dev | head`: nobody reads on. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
