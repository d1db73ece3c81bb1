"""`python3 -m dev <command>`; the Makefile's targets are these."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from carillon import new
from dev import (
    account,
    bundle,
    development,
    engine,
    environments,
    linting,
    observe,
    operations,
    production,
    production_testing,
    stack,
    testing,
    yours,
)
from dev import config as configuration
from dev.config import load
from dev.output import Failure, fail, say

Command = Callable[[list[str]], int | None]


def _with_tools() -> dict[str, str]:
    """What .dev/env says of the running stack; goes on in the tools' environment."""
    config = load()
    values = account.read(config.environment_file)
    if not values:
        raise Failure(f"{config.environment_file} does not exist: run `make dev` first")
    environments.enter(config)
    return values


def watch(arguments: list[str]) -> None:
    """The terminal client on the running stack; `arguments` are its subscriptions."""
    values = {**os.environ, **_with_tools(), "PYTHONPATH": str(configuration.ROOT / "src")}
    os.execve(sys.executable, [sys.executable, "-m", "carillon.client", "watch", *arguments], values)  # noqa: S606


def demo(arguments: list[str]) -> None:
    """A real playbook run, sent to the page by the callback plugin."""
    values = _with_tools()
    say(f"Watch it at {values['CARILLON_URL']}\n")
    playbook = os.path.join(sys.prefix, "bin", "ansible-playbook")
    os.chdir(configuration.ROOT / "demo")
    argv = [playbook, "site.yml", *arguments]
    os.execve(playbook, argv, {**os.environ, **values, "ANSIBLE_CONFIG": "ansible.cfg"})  # noqa: S606


def _test_config() -> configuration.Config:
    return load(configuration.unnamed(), project=testing.PROJECT, state=testing.STATE)


def everything(arguments: list[str]) -> int:
    part = "".join(arguments)
    if part and part not in testing.PARTS:
        raise Failure(f"PART={part}: there are {', '.join(testing.PARTS)}")
    config = _test_config()
    if engine.check():
        # What a cut-off run left behind goes first: it would hold the ports.
        stack.down(config, volumes=True)
    config = config.moved(ports=testing.free_ports(config))
    development.prepare(config)
    environments.enter(config, "venv-test")
    return testing.everything(config, linting.sources(), part)


def unit(_: list[str]) -> int:
    environments.enter(_test_config(), "venv-test")
    return testing.unit()


def documentation(_: list[str]) -> int:
    config = _test_config()
    environments.enter(config, "venv-test")
    failed = testing.documentation(config)
    if not failed:
        say(f"Read it: {configuration.ROOT / testing.SITE / 'index.html'}")
    return failed


def lint(_: list[str]) -> int:
    environments.enter(_test_config(), "venv-test")
    return testing.run(linting.everything(), {})


def _production(name: str) -> dict[str, Command]:
    """The commands of `make production` or `make cluster`."""

    def load() -> configuration.Config:
        return production.load(cluster=name == "cluster")

    return {
        name: lambda _: production.start(load(), target=name),
        f"{name}-down": lambda _: stack.down(load(), volumes=False),
        f"{name}-clean": lambda _: development.clean(load()),
    }


def _operation(name: str) -> Command:
    return lambda arguments: operations.verb(name, *arguments[:1])


def make_quadlets(_: list[str]) -> None:
    environments.enter(load())
    from quadlets import make

    make.start()


def make_bundle(_: list[str]) -> None:
    environments.enter(load())
    bundle.make()


def _enter_release() -> None:
    """Go on in the tests' environment, which has what makes the artifacts."""
    config = _test_config()
    environments.enter(config, "venv-test")
    testing.ensure_programs(config, ("graphviz", "minisign"))


def make_release(_: list[str]) -> None:
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
    config = production_testing.load()
    if engine.check():
        # What a cut-off run left behind goes first: it would hold the ports.
        production_testing.clean(config)
    development.prepare(config, production.IMAGES)
    environments.enter(config, "venv-production")
    only = [argument for argument in arguments if argument != "--full"]
    return production_testing.test(config, full="--full" in arguments, only=only)


COMMANDS: dict[str, Command] = {
    "dev": lambda _: development.dev(load()),
    "observe": lambda _: observe.start(load()),
    "down": lambda _: stack.down(load(), volumes=False),
    "clean": lambda _: development.clean(load()),
    "logs": lambda services: stack.become(load(), "logs", "--follow", "--tail", "100", *services),
    "shell": lambda services: stack.become(load(), "exec", *(services[:1] or ["uwsgi"]), "bash"),
    "token": lambda _: say(account.new_token(load(), "make token")),
    "demo": demo,
    "watch": watch,
    "test": everything,
    "test-unit": unit,
    "test-clean": lambda _: development.clean(_test_config(), everything=True),
    "lint": lint,
    "docs": documentation,
    **_production("production"),
    **_production("cluster"),
    **{
        f"production-{name}": _operation(name)
        for name in ("backup", "restore", "prune", "upgrade", "rollback", "rotate", "refresh")
    },
    "quadlets": make_quadlets,
    "new": new.main,
    "bundle": make_bundle,
    "release": make_release,
    "release-rebuild": rebuild_release,
    "test-production": test_production,
    "test-production-clean": lambda _: production_testing.clean(production_testing.load()),
}


def main(arguments: list[str]) -> int:
    commands = {**COMMANDS, **yours.COMMANDS} if configuration.YOURS else COMMANDS
    if not arguments or arguments[0] not in commands:
        raise Failure(f"usage: python3 -m dev {'|'.join(commands)}")
    if configuration.YOURS and arguments[0] not in yours.WITHOUT_CODE:
        yours.put(locked=arguments[0] != "lock")
    os.chdir(configuration.ROOT)
    return commands[arguments[0]](arguments[1:]) or 0


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
