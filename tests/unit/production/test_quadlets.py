"""Units of Podman: what compose/production.yml says is said, and what cannot be said is refused."""

from __future__ import annotations

import configparser
import copy
import re

import pytest
import yaml

from dev import config, production
from dev.config import ROOT
from dev.output import Failure
from quadlets import make, render

DOCUMENT = yaml.safe_load((ROOT / "compose/production.yml").read_text())
SERVICES = DOCUMENT["services"]
STAY = sorted(name for name, service in SERVICES.items() if not render.runs_once(service))
VARIABLES = {
    **dict.fromkeys(re.findall(r"\$\{([A-Z_]+)[}:]", (ROOT / "compose/production.yml").read_text()), ""),
    "CARILLON_PROJECT": "carillon",
    "CARILLON_STATE": "/etc/carillon",
    "CARILLON_ALLOWED_HOSTS": "chimes.example.org,[::1]",
}
HEALTH = {"test": ["CMD", "healthcheck"], "interval": "30s", "timeout": "3s", "start_interval": "1s"}
IMAGES = dict.fromkeys(("nginx", "rabbitmq", "postgresql"), HEALTH)


def rendered(document=DOCUMENT, **variables: str) -> dict[str, str]:
    return render.units(
        document, {**VARIABLES, **variables}, images=IMAGES, subnets={"front": "10.89.43.0/24"}
    )


def lines(units: dict[str, str], file: str, section: str) -> list[tuple[str, str]]:
    """A section's keys with their values, in order: a key may come more than once."""
    text = units[file].partition(f"\n[{section}]\n")[2].partition("\n[")[0]
    return [tuple(line.split("=", 1)) for line in text.splitlines() if line]


def values(units: dict[str, str], service: str, key: str, section: str = "Container") -> list[str]:
    return [value for name, value in lines(units, f"carillon-{service}.container", section) if name == key]


def changed(service: str, **keys) -> dict:
    document = copy.deepcopy(DOCUMENT)
    document["services"][service].update(keys)
    return document


@pytest.fixture(scope="module")
def units() -> dict[str, str]:
    return rendered()


def test_each_service_network_and_volume_is_a_unit(units):
    expected = {
        *(f"carillon-{name}.container" for name in SERVICES),
        *(f"carillon-{name}.network" for name in DOCUMENT["networks"]),
        *(f"carillon-{name}.volume" for name in DOCUMENT["volumes"]),
    }
    assert set(units) == expected
    assert len(expected) == 12
    for text in units.values():
        configparser.RawConfigParser(strict=False).read_string(text)
        assert "$" not in text
        assert "%" not in text


def test_the_same_document_is_the_same_bytes(units):
    assert rendered() == units


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_nothing_of_a_container_s_limits_is_lost(units, service):
    said = SERVICES[service]
    section = dict(lines(units, f"carillon-{service}.container", "Container"))
    assert section["ReadOnly"] == "true"
    assert section["ReadOnlyTmpfs"] == "false", "Podman would make /tmp, /run and /var/tmp writable"
    assert section["DropCapability"] == "all"
    assert section["NoNewPrivileges"] == "true"
    assert section["PidsLimit"] == "1024" == str(said["pids_limit"])
    assert section["Pull"] == "never"
    assert section["Image"] == said["image"].replace("${CARILLON_PROJECT}", "carillon").join(
        ("localhost/", "")
    )
    memory = [word for word in values(units, service, "PodmanArgs") if word.startswith("--memory=")]
    default = re.search(r":-(.*)}", said.get("mem_limit", ""))
    assert memory == ([f"--memory={default[1]}"] if default else [])


def test_memory_is_what_a_variable_says():
    assert values(rendered(CARILLON_APP_MEMORY="4g"), "app", "PodmanArgs") == ["--memory=4g"]


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_what_is_mounted_is_what_compose_mounts(units, service):
    expected = [
        f"carillon-{volume.replace(':', '.volume:', 1)}"
        if isinstance(volume, str)
        else f"{volume['source'].replace('${CARILLON_STATE}', '/etc/carillon')}:{volume['target']}:ro,z"
        for volume in SERVICES[service]["volumes"]
    ]
    assert values(units, service, "Volume") == expected
    assert any("secrets" in volume for volume in expected) == (service != "nginx")
    temporary = [mount for mount in values(units, service, "Mount") if "/dev/shm" not in mount]
    assert [re.search("destination=([^,]+)", mount)[1] for mount in temporary] == [
        mount.partition(":")[0] for mount in SERVICES[service]["tmpfs"]
    ]
    for mount, said in zip(temporary, SERVICES[service]["tmpfs"], strict=True):
        assert ("U=true" in mount) == ("uid=" in said)
        for option in re.findall("(?:size|mode)=[^,]+", said):
            assert f"tmpfs-{option}" in mount
        assert mount.endswith(",notmpcopyup,noexec")


def test_a_volume_is_of_who_writes_to_it(units):
    found = {
        name: [
            value for key, value in lines(units, f"carillon-{name}.volume", "Volume") if key != "VolumeName"
        ]
        for name in DOCUMENT["volumes"]
    }
    uid = {name: re.search(r"uid=(\d+)", str(service["tmpfs"]))[1] for name, service in SERVICES.items()}
    writer = {"static": "app", "media": "app", "rabbitmq": "rabbitmq", "postgresql": "postgresql"}
    assert found == {name: [uid[service]] * 2 for name, service in writer.items()}
    for tmpfs in (["/tmp"], ["/tmp:uid=1,gid=1"]):
        document = changed("assets", tmpfs=tmpfs)
        document["services"]["app"]["tmpfs"] = document["services"]["migrate"]["tmpfs"] = ["/tmp"]
        document["services"]["app"]["tmpfs"] = ["/tmp:uid=2,gid=2"] if "uid" in tmpfs[0] else ["/tmp"]
        with pytest.raises(render.Refused, match=r"volumes\.media: its one owner must be"):
            rendered(document)


def test_no_secret_is_in_a_unit(units):
    named = [value for service in SERVICES for value in values(units, service, "Environment")]
    words = ("PASSWORD", "KEY", "COOKIE")
    secret = [value for value in named if any(word in value.partition("=")[0] for word in words)]
    assert len(secret) >= 5
    assert all(re.search(r'_FILE=/run/secrets/\w+"$', value) for value in secret)


def test_networks_are_those_of_compose_and_apart_from_one_another(units):
    found = {service: set(values(units, service, "Network")) for service in STAY}
    assert found["nginx"] == {"carillon-front.network"}
    assert found["app"] == {"carillon-front.network", "carillon-default.network"}
    assert found["rabbitmq"] == found["postgresql"] == {"carillon-default.network"}
    for name in ("front", "default"):
        assert ("Options", "isolate=true") in lines(units, f"carillon-{name}.network", "Network")
    assert ("Subnet", "10.89.43.0/24") in lines(units, "carillon-front.network", "Network")
    assert all(values(units, service, "NetworkAlias") == [service] for service in SERVICES)


def test_ports_are_those_of_compose_and_nothing_else_is_published():
    units = rendered(CARILLON_LISTEN="192.0.2.7", CARILLON_HTTP_PORT="8080")
    assert values(units, "nginx", "PublishPort") == ["192.0.2.7:8080:80", "192.0.2.7:443:443"]
    # Without a capability, as Docker has it.
    assert values(units, "nginx", "Sysctl") == ["net.ipv4.ip_unprivileged_port_start=0"]
    for service in set(SERVICES) - {"nginx"}:
        assert values(units, service, "PublishPort") == values(units, service, "Sysctl") == []


def test_what_runs_once_comes_before_and_what_is_published_last(units):
    def after(service):
        return set(values(units, service, "After", "Unit"))

    def unit(*names):
        return {f"carillon-{name}.service" for name in names}

    assert after("postgresql") == after("rabbitmq") == set()
    assert after("migrate") == after("assets") == unit("postgresql", "rabbitmq")
    assert after("app") == unit("postgresql", "rabbitmq", "migrate", "assets")
    assert after("nginx") == unit("app")
    # A broker that is restarted takes no other with it; a migration that failed is why nothing starts.
    assert set(values(units, "app", "Requires", "Unit")) == unit("migrate", "assets")
    assert set(values(units, "app", "Wants", "Unit")) == unit("postgresql", "rabbitmq")


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_what_ends_is_started_again_or_has_run_once(units, service):
    section = dict(lines(units, f"carillon-{service}.container", "Service"))
    once = service in ("migrate", "assets")
    assert section["Restart"] == ("no" if once else "always")
    assert section.get("Type") == ("oneshot" if once else None)
    assert values(units, service, "Notify") == ([] if once else ["healthy"])
    assert values(units, service, "StartLimitIntervalSec", "Unit") == ["0"]
    assert values(units, service, "WantedBy", "Install") == ["multi-user.target"]
    grace = SERVICES[service].get("stop_grace_period")
    assert values(units, service, "StopTimeout") == ([grace.removesuffix("s")] if grace else [])
    patience = int(grace.removesuffix("s")) if grace else 10
    assert int(section["TimeoutStopSec"]) > patience, "systemd would kill it before its time"


def test_a_stack_of_another_name_does_not_stop_with_this_one():
    """A dash in a slice's name would make it a part of `carillon.slice`."""
    text = "".join(rendered(CARILLON_PROJECT="carillon-two").values())
    assert set(re.findall(r"^Slice=(.*)$", text, re.MULTILINE)) == {"carillon_two.slice"}


def test_who_waits_for_others_does_not_wait_for_ever(units):
    limits = {name: values(units, name, "TimeoutStartSec", "Service") for name in SERVICES}
    assert limits["nginx"] == limits["app"] == ["300"]
    for name in ("postgresql", "rabbitmq", "migrate"):
        assert limits[name] == ["infinity"], "a long log and a long migration take their time"


def test_health_is_asked_as_compose_or_the_image_says(units):
    section = dict(lines(units, "carillon-app.container", "Container"))
    assert section["HealthCmd"] == "CMD carillon probe uwsgi daphne runworker"
    assert section["HealthStartupCmd"] == section["HealthCmd"]
    said = SERVICES["app"]["healthcheck"]
    assert section["HealthInterval"] == said["interval"]
    assert section["HealthTimeout"] == section["HealthStartupTimeout"] == said["timeout"]
    assert section["HealthRetries"] == str(said["retries"])
    assert section["HealthStartPeriod"] == said["start_period"]
    assert section["HealthStartupInterval"] == said["start_interval"]
    assert values(units, "nginx", "HealthCmd") == ["CMD healthcheck"]
    assert values(units, "migrate", "HealthCmd") == []


def test_health_of_an_image_is_read_from_its_dockerfile():
    for name in IMAGES:
        found = render.image_health((ROOT / "images" / name / "Dockerfile").read_text())
        assert found["test"] == ["CMD", "healthcheck"]
        assert set(found) == {"test", "interval", "timeout", "start_period", "start_interval"}
    assert render.image_health((ROOT / "images/app/Dockerfile").read_text()) is None
    with pytest.raises(render.Refused, match="HEALTHCHECK: must be in one line"):
        render.image_health("FROM x\nHEALTHCHECK CMD curl localhost\n")


def test_commands_are_those_of_compose(units):
    assert values(units, "migrate", "Exec") == ["migrate"]
    assert values(units, "assets", "Exec") == ["manage collectstatic --no-input"]
    assert values(units, "app", "Exec") == []
    assert values(units, "app", "Entrypoint") == [
        '["supervisord","--nodaemon","--configuration","/etc/carillon/supervisord/supervisord.conf"]'
    ]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"privileged": True}, "privileged: no unit says that"),
        ({"depends_on": ["app"]}, "depends_on: no unit says that"),
        ({"deploy": {"replicas": 2}}, "deploy: no unit says that"),
        ({"read_only": False}, "read_only: must be true"),
        ({"cap_drop": ["CHOWN"]}, "cap_drop: must be [ALL]"),
        ({"security_opt": ["seccomp:unconfined"]}, "security_opt: no unit says seccomp:unconfined"),
        ({"pids_limit": "many"}, "pids_limit: 'many' is not a number"),
        ({"mem_limit": "1.5g"}, "mem_limit: '1.5g' is not like 512m"),
        ({"restart": "sometimes"}, "restart: 'sometimes' is none of unless-stopped, "),
        ({"stop_grace_period": "4m20s"}, "stop_grace_period: '4m20s' is not like 30s"),
        ({"command": []}, "command: empty, but for an entrypoint of its own, is the image's"),
        ({"command": ["sh", "-c", "a b"]}, "command: 'a b' is not a word"),
        ({"environment": {"A": 'say "x"'}}, "environment.A: 'say \"x\"' has a character"),
        ({"environment": {"A": "50%"}}, "environment.A: '50%' has a character"),
        ({"environment": {"A": "$HOME"}}, "environment.A: '$HOME' has a variable in a form"),
        ({"networks": ["back"]}, "networks: back is not defined"),
        ({"networks": {"front": {"aliases": ["x"]}}}, "networks: must be a list of names"),
        ({"tmpfs": ["/run:exec"]}, "tmpfs: /run: no unit says exec"),
        ({"tmpfs": ["/a:uid=1,gid=1", "/b:uid=2,gid=2"]}, "tmpfs: the owner must be one"),
        ({"volumes": ["other:/var"]}, "volumes: other is not defined"),
        ({"volumes": ["media:/var:rw"]}, "volumes: media: no unit says rw"),
        ({"volumes": [{"type": "bind", "source": "/a", "target": "/b"}]}, "volumes: /b: must be a bind with"),
        ({"logging": {"driver": "syslog"}}, "logging: must be json-file"),
        ({"healthcheck": {"test": "true"}}, "healthcheck.test: must be a list that begins with CMD"),
        ({"healthcheck": {"test": ["CMD", "x"], "disable": True}}, "healthcheck.disable: no unit says that"),
    ],
)
def test_what_no_unit_says_is_refused_by_its_name(keys, said):
    with pytest.raises(render.Refused) as refused:
        rendered(changed("nginx", **keys))
    assert f"services.nginx.{said}" in str(refused.value)


def test_what_is_said_of_a_network_or_a_volume_is_refused_too():
    document = copy.deepcopy(DOCUMENT)
    document["volumes"]["media"] = {"driver": "nfs"}
    document["networks"]["front"] = {"internal": True}
    document["configs"] = {}
    with pytest.raises(render.Refused) as refused:
        rendered(document)
    assert sorted(str(refused.value).splitlines()) == [
        "configs: no unit says that",
        "networks.front.internal: no unit says that",
        "volumes.media.driver: no unit says that",
    ]


def test_a_variable_that_is_missing_is_named():
    with pytest.raises(render.Refused, match=r"^name: CARILLON_PROJECT is not set: start this with"):
        rendered(CARILLON_PROJECT="")
    with pytest.raises(render.Refused, match="name: 'Chimes' is no name of units"):
        rendered(CARILLON_PROJECT="Chimes")


# --- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path):
    return state_of(tmp_path, CARILLON_PROJECT="chimes")


def state_of(tmp_path, **told):
    return make.load({"CARILLON_STATE": str(tmp_path / "state"), **told})


def test_all_that_a_unit_mounts_is_made(state):
    folder = make.write(state)
    there = str(make.mounted_from(state))
    assert there == "/etc/chimes"
    sources = {
        line.removeprefix("Volume=").partition(":")[0]
        for file in folder.glob("*.container")
        for line in file.read_text().splitlines()
        if line.startswith(f"Volume={there}/")
    }
    assert len(sources) == 9
    for source in sources:
        assert (state.state / source.removeprefix(f"{there}/")).exists(), source
    assert state.state.stat().st_mode & 0o777 == state.secrets.stat().st_mode & 0o777 == 0o700
    assert "localhost/carillon/app:chimes" in (folder / "chimes-app.container").read_text()


def test_nginx_asks_the_dns_server_of_its_network(tmp_path):
    state = state_of(tmp_path, CARILLON_PROJECT="chimes", CARILLON_SUBNET="10.1.2.0/24")
    folder = make.write(state)
    assert "Subnet=10.1.2.0/24\n" in (folder / "chimes-front.network").read_text()
    assert "resolver 10.1.2.1 " in (state.state / "nginx/site.conf").read_text()


def test_made_again_secrets_stay_and_an_old_unit_goes(state):
    folder = make.write(state)
    before = {path: path.read_bytes() for path in state.state.rglob("*") if path.is_file()}
    (folder / "chimes-gone.container").write_text("[Container]\n")
    make.write(state)
    assert {path: path.read_bytes() for path in state.state.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("said", ["10.89.43.7/24", "10.89.43.0/30", "front", "fd00::/64"])
def test_a_network_that_cannot_be_is_refused_before_anything_is_touched(tmp_path, said):
    state = state_of(tmp_path, CARILLON_SUBNET=said)
    with pytest.raises(Failure, match="CARILLON_SUBNET="):
        make.write(state)
    assert not state.state.exists()


def test_no_engine_is_asked(state, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    make.write(state)


def test_what_it_was_told_is_kept_beside_the_units(tmp_path):
    told = {"CARILLON_PROJECT": "chimes", "CARILLON_SUBNET": "10.1.2.0/24", "CARILLON_APP_MEMORY": "3g"}
    told |= {"CARILLON_ALLOWED_HOSTS": "chimes.example.org", "CARILLON_HTTPS_PORT": "8443"}
    folder = make.write(state_of(tmp_path, **told))
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert "8443" in before["chimes-nginx.container"]
    make.write(state_of(tmp_path))
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    make.write(state_of(tmp_path, CARILLON_SUBNET="", CARILLON_HTTPS_PORT=""))
    assert "Subnet=10.89.43.0/24\n" in (folder / "chimes-front.network").read_text()
    assert "0.0.0.0:443:443" in (folder / "chimes-nginx.container").read_text()


def test_its_state_is_nobody_else_s(tmp_path):
    others = {config.load({}).state, *(production.load({}, cluster=each).state for each in (True, False))}
    assert make.load({}).state not in others
    assert state_of(tmp_path).https_port == 443
