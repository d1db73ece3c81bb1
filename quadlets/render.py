"""Units of Podman's systemd generator (quadlets), made of the document of compose/production.yml.

Pure: the document and its variables go in, file names with their text come out. Whatever the document says
that has no line here is refused by its name, so that a container never runs with less than Compose gives it.

What Docker does without being told is written out, where Podman does otherwise:

- nobody needs a capability to listen on a port below 1024 (a sysctl);
- a container reaches nothing of a network that it is not in;
- /dev/shm is writable although the root file system is not, and /run, /tmp and /var/tmp are not;
- a tmpfs is noexec, and nothing of the image is copied into it;
- a container that ends is started again for ever, each time a little later, up to a minute;
- health checks decide nothing; here what comes after a container waits for its first good one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

# As Docker has it, and so as the images were tested.
_SHARED_MEMORY = "64m"
_TMPFS = "notmpcopyup,noexec"
_GRACE = 10
# What systemd leaves Podman beyond a container's own time to end: to remove it, too.
_LEFT = 20
# Seconds for one that waits for others until it is healthy: then `systemctl start` fails, and says so.
_START = 300

_VARIABLE = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)(?::([-?])([^}]*))?\}")
_SECONDS = re.compile(r"([0-9]+)s")
_SIZE = re.compile(r"[0-9]+[kmg]")
# Words that systemd, Quadlet and Podman each take as they are: no quote, no specifier, no variable.
_WORD = re.compile(r"[A-Za-z0-9_./:,@=\[\]*+-]+")
_VALUE = re.compile(r"[A-Za-z0-9_./:,@=\[\]*+ -]*")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")

_RESTART = {"unless-stopped": "always", "always": "always", "on-failure": "on-failure", "no": "no"}
_HEALTH = {"test", "interval", "timeout", "retries", "start_period", "start_interval"}
_HEALTHCHECK = re.compile(r"^HEALTHCHECK +((?:--[a-z-]+=\S+ +)*)CMD +\[(.*)\]$", re.MULTILINE)


class Refused(ValueError):
    """What has no unit that says the same, one line each, with its name in the document."""


def units(
    document: Mapping[str, Any],
    variables: Mapping[str, str],
    *,
    images: Mapping[str, Mapping[str, Any]],
    subnets: Mapping[str, str],
) -> dict[str, str]:
    """File name to text. `images` are health checks that images have of their own, by service, in Compose's
    words; `subnets` the networks whose addresses must be known beforehand (the first is the DNS server's).

    Raises `Refused` with all that cannot be said.
    """
    problems: list[str] = []
    filled = _filled(document, variables, "", problems)
    if problems:
        raise Refused("\n".join(problems))
    project = str(filled.get("name", ""))
    if not _NAME.fullmatch(project):
        raise Refused(f"name: {project!r} is no name of units (small letters and digits, - between them)")
    problems += [
        f"{key}: no unit says that"
        for key in filled
        if key not in ("name", "services", "networks", "volumes") and not key.startswith("x-")
    ]
    found: dict[str, str] = {}
    services = filled.get("services") or {}
    for kind, suffix, named in (("networks", "network", "NetworkName"), ("volumes", "volume", "VolumeName")):
        for name, said in (filled.get(kind) or {}).items():
            problems += [f"{kind}.{name}.{key}: no unit says that" for key in said or {}]
            lines = [f"{named}={project}_{name}"]
            if kind == "networks":
                # Otherwise names are not known from one to the other, but addresses lead there.
                lines.append("Options=isolate=true")
                lines += [f"Subnet={subnets[name]}"] if name in subnets else []
            elif len(owners := _writers(name, services)) == 1:
                # While a volume is empty, Podman would give it to whichever container mounts it next.
                lines += [f"{word}={number}" for word, number in zip(("User", "Group"), *owners, strict=True)]
            else:
                problems.append(f"volumes.{name}: its one owner must be that of a tmpfs of who writes to it")
            section = suffix.capitalize()
            found[f"{project}-{name}.{suffix}"] = _text({section: lines})
    before = _before(document, services)
    for name, service in services.items():
        container = _Container(project, name, service, images.get(name), filled)
        found[f"{project}-{name}.container"] = _text(container.sections(before[name], services))
        problems += [f"services.{name}.{problem}" for problem in container.problems]
    if problems:
        raise Refused("\n".join(problems))
    return found


def image_health(dockerfile: str) -> dict[str, Any] | None:
    """The health check of an image, in the words of Compose's `healthcheck`; None where it has none.

    Raises `Refused` when there is one in another form.
    """
    match = _HEALTHCHECK.search(dockerfile)
    if match is None:
        if re.search(r"^HEALTHCHECK", dockerfile, re.MULTILINE):
            raise Refused('HEALTHCHECK: must be in one line, with CMD ["program", …]')
        return None
    options = dict(option[2:].split("=") for option in match[1].split())
    words = [word.strip().strip('"') for word in match[2].split(",")]
    return {"test": ["CMD", *words], **{name.replace("-", "_"): value for name, value in options.items()}}


class _Container:
    """One service's unit. What it cannot say is in `problems`, each with the key that says it."""

    def __init__(
        self,
        project: str,
        name: str,
        service: Mapping[str, Any],
        health: Mapping[str, Any] | None,
        document: Mapping[str, Any],
    ) -> None:
        self.project, self.name, self.service, self.document = project, name, service, document
        self.health = service.get("healthcheck", health)
        self.problems: list[str] = []

    def sections(self, before: list[str], services: Mapping[str, Any]) -> dict[str, list[str]]:
        tables: dict[str, Callable[[Any], Iterator[str]]] = {
            "image": self._image,
            "entrypoint": self._entrypoint,
            "command": self._command,
            "environment": self._environment,
            "networks": self._networks,
            "ports": self._ports,
            "read_only": self._read_only,
            "cap_drop": self._cap_drop,
            "security_opt": self._security_opt,
            "pids_limit": self._pids_limit,
            "mem_limit": self._mem_limit,
            "tmpfs": self._tmpfs,
            "volumes": self._volumes,
            "logging": self._logging,
            "healthcheck": self._healthcheck,
            "stop_grace_period": self._stop_grace_period,
        }
        said = {"networks": ["default"], "healthcheck": None, **self.service}
        self.problems += [f"{key}: no unit says that" for key in said if key not in (*tables, "restart")]
        # In the order of the table, so that units of one document are alike.
        lines = [line for key, write in tables.items() if key in said for line in write(said[key])]
        named = [f"ContainerName={self.project}-{self.name}", f"NetworkAlias={self.name}"]
        once = runs_once(self.service)
        if self.health and not once:
            named.append("Notify=healthy")
        return {
            "Unit": self._unit(before, services),
            "Container": named + lines,
            "Service": self._systemd(once=once, first=not before),
            "Install": ["WantedBy=multi-user.target"],
        }

    def _unit(self, before: list[str], services: Mapping[str, Any]) -> list[str]:
        lines = [f"Description={self.project}: {self.name}"]
        for other in before:
            # A one-shot that failed is why its followers do not start; a broker that is away, they bear.
            word = "Requires" if runs_once(services[other]) else "Wants"
            lines += [f"{word}={self.project}-{other}.service", f"After={self.project}-{other}.service"]
        # It is started again however often it ended: systemd would give up after five times.
        return [*lines, "StartLimitIntervalSec=0"]

    def _systemd(self, *, once: bool, first: bool) -> list[str]:
        restart = _RESTART.get(str(self.service.get("restart", "no")))
        if restart is None:
            self._refuse("restart", f"{self.service['restart']!r} is none of {', '.join(_RESTART)}")
        # A dash in its name would make it a part of another slice, and stop with that.
        lines = [f"Slice={self.project.replace('-', '_')}.slice", f"Restart={restart}"]
        if restart != "no":
            lines += ["RestartSec=1", "RestartSteps=6", "RestartMaxDelaySec=60"]
        if once:
            lines += ["Type=oneshot", "RemainAfterExit=yes"]
        # A broker that reads a long log is not killed for it, nor a long migration.
        start = "infinity" if first or once else _START
        return [*lines, f"TimeoutStartSec={start}", f"TimeoutStopSec={self._grace() + _LEFT}"]

    def _refuse(self, key: str, why: str) -> None:
        self.problems.append(f"{key}: {why}")

    def _word(self, key: str, value: Any) -> str:
        if not isinstance(value, str) or not _WORD.fullmatch(value):
            self._refuse(key, f"{value!r} is not a word that a unit takes as it is")
        return str(value)

    def _seconds(self, key: str, value: Any) -> int:
        match = _SECONDS.fullmatch(str(value))
        if match is None:
            self._refuse(key, f"{value!r} is not like 30s")
        return int(match[1]) if match else 0

    def _grace(self) -> int:
        said = self.service.get("stop_grace_period")
        return _GRACE if said is None else self._seconds("stop_grace_period", said)

    def _image(self, value: Any) -> Iterator[str]:
        # Of this machine alone: the name without a registry could be somebody's at the first one asked.
        yield f"Image=localhost/{self._word('image', value)}"
        yield "Pull=never"

    def _entrypoint(self, value: Any) -> Iterator[str]:
        words = ",".join(f'"{self._word("entrypoint", word)}"' for word in value)
        yield f"Entrypoint=[{words}]"

    def _command(self, value: Any) -> Iterator[str]:
        if value:
            yield f"Exec={' '.join(self._word('command', word) for word in value)}"
        elif "entrypoint" not in self.service:
            self._refuse("command", "empty, but for an entrypoint of its own, is the image's")

    def _environment(self, value: Any) -> Iterator[str]:
        for name, text in value.items():
            if not _VALUE.fullmatch(str(text)):
                self._refuse(f"environment.{name}", f"{text!r} has a character that a unit takes otherwise")
            yield f'Environment="{name}={text}"'

    def _networks(self, value: Any) -> Iterator[str]:
        if not isinstance(value, list):
            self._refuse("networks", "must be a list of names")
            return
        for name in value:
            if name not in (self.document.get("networks") or {}):
                self._refuse("networks", f"{name} is not defined")
            yield f"Network={self.project}-{name}.network"

    def _ports(self, value: Any) -> Iterator[str]:
        for port in value:
            yield f"PublishPort={self._word('ports', port)}"
        if any(str(port).rpartition(":")[2].isdecimal() for port in value):
            yield "Sysctl=net.ipv4.ip_unprivileged_port_start=0"

    def _read_only(self, value: Any) -> Iterator[str]:
        if value is not True:
            self._refuse("read_only", "must be true")
        yield from ("ReadOnly=true", "ReadOnlyTmpfs=false")
        size = f"tmpfs-size={_SHARED_MEMORY}"
        yield f"Mount=type=tmpfs,destination=/dev/shm,tmpfs-mode=1777,{size},{_TMPFS}"

    def _cap_drop(self, value: Any) -> Iterator[str]:
        if value != ["ALL"]:
            self._refuse("cap_drop", "must be [ALL]")
        yield "DropCapability=all"

    def _security_opt(self, value: Any) -> Iterator[str]:
        for option in value:
            if option != "no-new-privileges:true":
                self._refuse("security_opt", f"no unit says {option}")
        yield "NoNewPrivileges=true"

    def _pids_limit(self, value: Any) -> Iterator[str]:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._refuse("pids_limit", f"{value!r} is not a number")
        yield f"PidsLimit={value}"

    def _mem_limit(self, value: Any) -> Iterator[str]:
        # Quadlet has a word of its own for it since Podman 5.6 alone.
        yield f"PodmanArgs=--memory={self._size('mem_limit', value)}"

    def _size(self, key: str, value: Any) -> str:
        if not _SIZE.fullmatch(str(value)):
            self._refuse(key, f"{value!r} is not like 512m")
        return str(value)

    def _tmpfs(self, value: Any) -> Iterator[str]:
        for mount in value:
            path, _, options = self._word("tmpfs", mount).partition(":")
            said = dict(option.partition("=")[::2] for option in options.split(",") if option)
            parts = [f"type=tmpfs,destination={path}", f"tmpfs-mode={said.pop('mode', '1777')}"]
            if "size" in said:
                parts.append(f"tmpfs-size={self._size('tmpfs', said.pop('size'))}")
            if "uid" in said or "gid" in said:
                said = {option: value for option, value in said.items() if option not in ("uid", "gid")}
                # Podman takes no number: the owner is the container's user.
                parts.append("U=true")
            for option in said:
                self._refuse("tmpfs", f"{path}: no unit says {option}")
            yield f"Mount={','.join([*parts, _TMPFS])}"
        if len(_owners(self.service)) > 1:
            self._refuse("tmpfs", "the owner must be one: the container's user and its group")

    def _volumes(self, value: Any) -> Iterator[str]:
        for volume in value:
            if isinstance(volume, str):
                yield from self._named(volume)
            else:
                yield from self._bind(volume)

    def _named(self, volume: str) -> Iterator[str]:
        name, _, rest = self._word("volumes", volume).partition(":")
        path, _, options = rest.partition(":")
        if name not in (self.document.get("volumes") or {}):
            self._refuse("volumes", f"{name} is not defined")
        for option in filter(None, options.split(",")):
            if option not in ("ro", "nocopy"):
                self._refuse("volumes", f"{name}: no unit says {option}")
        yield f"Volume={self.project}-{name}.volume:{path}{':' if options else ''}{options}"

    def _bind(self, volume: Mapping[str, Any]) -> Iterator[str]:
        source, target = (self._word("volumes", volume.get(key)) for key in ("source", "target"))
        # Podman never makes a source that is missing, which Docker has to be told.
        wanted = {"create_host_path": False, "selinux": "z"}
        if (
            volume.get("type") != "bind"
            or volume.get("bind") != wanted
            or set(volume) - {"type", "source", "target", "read_only", "bind"}
        ):
            self._refuse("volumes", f"{target}: must be a bind with selinux: z and create_host_path: false")
        yield f"Volume={source}:{target}:{'ro,' if volume.get('read_only') else ''}z"

    def _logging(self, value: Any) -> Iterator[str]:
        if value.get("driver") != "json-file" or set(value.get("options", {})) - {"max-size", "max-file"}:
            self._refuse("logging", "must be json-file with max-size and max-file")
        # The journal bounds itself, for all of a machine together.
        yield "LogDriver=journald"

    def _healthcheck(self, _: Any) -> Iterator[str]:
        said = self.health
        if not said:
            return
        for key in set(said) - _HEALTH:
            self._refuse(f"healthcheck.{key}", "no unit says that")
        test = said.get("test")
        if not isinstance(test, list) or test[:1] != ["CMD"] or len(test) < 2:
            self._refuse("healthcheck.test", "must be a list that begins with CMD")
            return
        command = " ".join(self._word("healthcheck.test", word) for word in test)
        interval, timeout = (self._seconds(key, said.get(key, "30s")) for key in ("interval", "timeout"))
        yield f"HealthCmd={command}"
        yield f"HealthInterval={interval}s"
        yield f"HealthTimeout={timeout}s"
        yield f"HealthRetries={int(said.get('retries', 3))}"
        if "start_period" in said:
            yield f"HealthStartPeriod={self._seconds('start_period', said['start_period'])}s"
        if "start_interval" in said:
            yield f"HealthStartupCmd={command}"
            yield f"HealthStartupInterval={self._seconds('start_interval', said['start_interval'])}s"
            yield f"HealthStartupTimeout={timeout}s"

    def _stop_grace_period(self, _: Any) -> Iterator[str]:
        yield f"StopTimeout={self._grace()}"


def runs_once(service: Mapping[str, Any]) -> bool:
    """Whether Compose starts it, lets it end, and leaves it so."""
    return str(service.get("restart", "no")) == "no"


def _owners(service: Mapping[str, Any]) -> set[tuple[str, str]]:
    """User and group of its temporary file systems: those of its image."""
    options = (re.findall("[ug]id=([0-9]+)", str(mount)) for mount in service.get("tmpfs", []))
    return {(found[0], found[-1]) for found in options if found}


def _writers(volume: str, services: Mapping[str, Any]) -> set[tuple[str, str]]:
    """The owners of containers that may write to the volume."""
    return {
        owner
        for service in services.values()
        for mount in service.get("volumes", [])
        if isinstance(mount, str) and mount.split(":")[0] == volume
        if "ro" not in ":".join(mount.split(":")[2:]).split(",")
        for owner in _owners(service)
    }


def _before(document: Mapping[str, Any], services: Mapping[str, Any]) -> dict[str, list[str]]:
    """For each service those that start before it and end after it. Compose starts all at once, and each
    waits for what it needs. systemd can be told, and what the document says is enough for it:

    - what is named in a variable …_HOST or …_HOSTS comes before whoever has the variable;
    - what runs once comes before what runs on in the same image;
    - what publishes a port comes after all that shares its networks: nobody is let in before.
    """
    found: dict[str, list[str]] = {}
    for name, service in services.items():
        hosts = [
            host
            for variable, value in document["services"][name].get("environment", {}).items()
            if variable.endswith(("_HOST", "_HOSTS"))
            for host in str(value).split(",")
        ]
        found[name] = [
            other
            for other, its in services.items()
            if other != name
            and (
                other in hosts
                or (runs_once(its) and not runs_once(service) and its.get("image") == service.get("image"))
                or ("ports" in service and "ports" not in its and _networks(its) & _networks(service))
            )
        ]
    return found


def _networks(service: Mapping[str, Any]) -> set[str]:
    return set(service.get("networks", ["default"]))


def _filled(value: Any, variables: Mapping[str, str], name: str, problems: list[str]) -> Any:
    """The document with its variables' values, as Compose fills it in."""
    if isinstance(value, Mapping):
        below = f"{name}." if name else ""
        return {
            key: _filled(item, variables, f"{below}{key}", problems)
            for key, item in value.items()
            # What is only there to be merged has been.
            if name or not str(key).startswith("x-")
        }
    if isinstance(value, list):
        return [_filled(item, variables, name, problems) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        variable, kind, word = match.groups()
        found = variables.get(variable, "")
        if found or (kind is None and variable in variables):
            return found
        if kind == "-":
            return word
        problems.append(f"{name}: {variable} is not set" + (f": {word}" if word else ""))
        return ""

    if "$" in _VARIABLE.sub("", value):
        problems.append(f"{name}: {value!r} has a variable in a form that is not known here")
    return _VARIABLE.sub(fill, value)


def _text(sections: Mapping[str, list[str]]) -> str:
    head = "# Made of compose/production.yml by `make quadlets`: change that, not this.\n"
    return head + "\n".join(
        "".join(f"{line}\n" for line in (f"[{name}]", *lines)) for name, lines in sections.items()
    )
