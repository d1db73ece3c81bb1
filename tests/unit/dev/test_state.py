"""What `make dev` makes on the machine, and what it leaves alone: secrets, certificates, environment file."""

import datetime
import json
import re
import stat
import subprocess
from dataclasses import replace
from fnmatch import fnmatch

import pytest
from cryptography import x509

from dev import account, certificates, config, images, process, production, secret_files, stack, testing
from dev.output import Failure

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_made_once_and_only_where_missing(tmp_path):
    folder = tmp_path / "secrets"
    assert set(secret_files.ensure(folder)) == set(secret_files.SECRETS)
    before = {name: secret_files.read(folder, name) for name in secret_files.SECRETS}
    assert len(set(before.values())) == len(before)
    assert secret_files.ensure(folder) == []
    (folder / "amqp_password").unlink()
    assert secret_files.ensure(folder) == ["amqp_password"]
    after = {name: secret_files.read(folder, name) for name in secret_files.SECRETS}
    assert [name for name in before if before[name] != after[name]] == ["amqp_password"]
    assert mode(folder) == 0o700


def test_secrets_need_no_quotes_anywhere(tmp_path):
    secret_files.ensure(tmp_path)
    for name in secret_files.SECRETS:
        assert re.fullmatch(r"[A-Za-z0-9_-]{20,}", secret_files.read(tmp_path, name))


def test_certificate_is_for_this_machine_alone_and_signed_by_the_authority(tmp_path):
    assert certificates.ensure(tmp_path, NOW)
    assert mode(tmp_path / "ca.key") == 0o600
    server = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    server.verify_directly_issued_by(authority)
    constraints = authority.extensions.get_extension_for_class(x509.NameConstraints)
    assert constraints.critical


def test_openssl_accepts_the_chain(tmp_path):
    certificates.ensure(tmp_path)
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"]
    answer = subprocess.run(
        [*command, str(tmp_path / "ca.pem"), str(tmp_path / "server.pem")], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(("days", "renewed"), [(0, False), (397 - 31, False), (397 - 29, True), (3650, True)])
def test_certificate_is_renewed_a_month_before_its_end(tmp_path, days, renewed):
    certificates.ensure(tmp_path, NOW)
    authority = (tmp_path / "ca.pem").read_bytes()
    assert certificates.ensure(tmp_path, NOW + datetime.timedelta(days=days)) is renewed
    assert ((tmp_path / "ca.pem").read_bytes() != authority) is (days == 3650)


def test_a_damaged_or_foreign_certificate_is_made_anew(tmp_path):
    certificates.ensure(tmp_path, NOW)
    (tmp_path / "server.key").chmod(0o600)
    (tmp_path / "server.key").write_text("not a key")
    assert certificates.ensure(tmp_path, NOW)
    (tmp_path / "ca.key").unlink()  # then the server's is signed by an authority that is no more
    assert certificates.ensure(tmp_path, NOW)
    assert not certificates.ensure(tmp_path, NOW)


def test_environment_file_has_exactly_the_variables_that_were_promised(settings, monkeypatch):
    secret_files.ensure(settings.secrets)
    certificates.ensure(settings.certificates)
    calls = []
    monkeypatch.setattr(account, "_me", lambda values: "admin" if values["CARILLON_TOKEN"] else "")
    monkeypatch.setattr(stack, "compose", lambda *arguments, **_: calls.append(arguments) or "car_token\n")
    account.ensure(settings)
    assert mode(settings.environment_file) == 0o600
    shell = 'set -eu; . "$0"; for name in URL HTTP_URL CA_CERT USERNAME PASSWORD TOKEN AMQP_URL; do '
    shell += 'eval "echo \\$CARILLON_$name"; done'
    answer = subprocess.run(
        ["sh", "-c", shell, str(settings.environment_file)], capture_output=True, text=True
    )
    password = secret_files.read(settings.secrets, "admin_password")
    amqp = secret_files.read(settings.secrets, "amqp_password")
    assert answer.stdout.splitlines() == [
        "https://localhost:8043",
        "http://localhost:8013",
        str(settings.certificates / "ca.pem"),
        "admin",
        password,
        "car_token",
        f"amqp://carillon:{amqp}@127.0.0.1:5672/carillon",
    ]
    assert len(settings.environment_file.read_text().splitlines()) == 7
    # No password in an argv, and a second run asks for no other token.
    assert not any(password in argument for call in calls for argument in map(str, call))
    done = len(calls)
    account.ensure(settings)
    assert len(calls) == done


def test_fingerprint_sees_content_names_and_modes(tmp_path):
    folder = tmp_path / "image"
    folder.mkdir()
    file = folder / "entrypoint"
    file.write_text("one")
    seen = {images.fingerprint(["image"], "base", tmp_path)}
    assert images.fingerprint(["image"], "base", tmp_path) in seen
    for change in (
        lambda: file.write_text("two"),
        lambda: file.chmod(0o755),
        lambda: file.rename(folder / "other"),
        lambda: (folder / "more").touch(),
    ):
        change()
        found = images.fingerprint(["image"], "base", tmp_path)
        assert found not in seen
        seen.add(found)
    assert images.fingerprint(["image"], "other base", tmp_path) not in seen


def test_fingerprint_does_not_see_what_a_program_left_that_ran_here(tmp_path):
    """A second `make production` would make the application's image anew, and drop its sockets."""
    (tmp_path / "src").mkdir()
    seen = images.fingerprint(["src"], "base", tmp_path)
    for name in ("__pycache__/page.cpython-313.pyc", "carillon.egg-info/PKG-INFO"):
        (tmp_path / "src" / name).parent.mkdir()
        (tmp_path / "src" / name).touch()
    assert images.fingerprint(["src"], "base", tmp_path) == seen
    ignored = (config.ROOT / "images/app/Dockerfile.dockerignore").read_text().split()
    assert {line for line in ignored if line.startswith("**")} == {"**/__pycache__", "**/*.egg-info"}


class Engine:
    """What docker is asked, and the images that it has: tag to the fingerprint of what they were built of."""

    def __init__(self, has):
        self.has = dict(has)
        self.asked = []

    def ask(self, command, **_):
        self.asked.append(command)
        told = ""
        if command[:3] == ["docker", "image", "inspect"] and "--format" not in command:
            told = json.dumps(
                [
                    {"RepoTags": [tag], "Config": {"Labels": {images.LABEL: self.has[tag]}}}
                    for tag in command[3:]
                    if tag in self.has
                ]
            )
        elif command[:3] == ["docker", "image", "ls"]:
            filters = [word.partition("=") for word in command if word.startswith(("label=", "reference="))]
            label = next((value.rpartition("=")[2] for key, _, value in filters if key == "label"), None)
            names = [value for key, _, value in filters if key == "reference"]
            told = "\n".join(
                tag
                for tag, made in self.has.items()
                if label in (None, made)
                and any(fnmatch(tag, name) or tag.startswith(f"{name}:") for name in names)
            )
        elif command[:2] == ["docker", "tag"]:
            self.has[command[3]] = self.has[command[2]]
        elif command[:3] == ["docker", "image", "rm"]:
            for tag in command[3:]:
                del self.has[tag]
        return process.subprocess.CompletedProcess(command, 0, told, "")


def test_stacks_share_no_name_of_an_image_and_build_nothing_twice(settings, monkeypatch, capsys):
    other = replace(settings, project="carillon-other")
    image = images.Image("nginx", ("images/nginx",))
    assert image.tag(settings) != image.tag(other)
    assert image.tag(settings).endswith(f":{settings.compose_environment()['CARILLON_PROJECT']}")
    label = images.fingerprint(image.inputs, "")
    engine = Engine({image.tag(other): label, "carillon/nginx:carillon-third": "of other files"})
    monkeypatch.setattr(process, "ask", engine.ask)
    monkeypatch.setattr(images, "build", lambda image, *_, **__: pytest.fail(f"built {image.name}"))
    images.ensure(settings, (image,))
    assert engine.has[image.tag(settings)] == label
    images.ensure(settings, (image,))
    images.forget(settings)
    assert set(engine.has) == {image.tag(other), "carillon/nginx:carillon-third", "carillon/nginx:dev"}
    built = []
    engine.has = {image.tag(other): "of before"}
    monkeypatch.setattr(images, "build", lambda image, *_, **__: built.append(image))
    images.ensure(settings, (image,))
    assert built == [image]
    assert engine.has == {image.tag(other): "of before"}


def test_production_s_images_are_called_after_its_stack(settings):
    (tag,) = {image.tag(settings).partition(":")[2] for image in production.IMAGES}
    assert tag == f"{settings.project}{images.BUILT}"
    # For tests without a stack of their own. Production's application is not development's.
    latest = {
        image.name for image in production.IMAGES if f"carillon/{image.name}:dev" in image.tags(settings)
    }
    assert latest == {"nginx", "rabbitmq", "postgresql"}
    (released,) = {len(replace(image, suffix="-release-1").tags(settings)) for image in production.IMAGES}
    assert released == 1


def test_every_input_of_an_image_exists():
    for image in images.IMAGES:
        for name in image.inputs:
            assert (config.ROOT / name).exists(), f"{image.name}: {name}"


def test_a_failing_command_shows_the_end_of_its_log(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(Failure, match="the work failed") as caught:
        process.work(["sh", "-c", "seq 100; exit 3"], what="the work", log=log, seconds=10)
    assert caught.value.details[-1] == "100"
    assert len(caught.value.details) <= 25


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    log = tmp_path / "log"
    with pytest.raises(Failure, match="took longer than 2 s"):
        process.work(["sh", "-c", "sleep 60 & echo $!; wait"], what="the work", log=log, seconds=2)
    child = log.read_text().strip()
    state = subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True).stdout
    assert state.strip()[:1] in ("", "Z")


def test_rows_of_old_and_new_compose():
    rows = [{"Service": "nginx"}, {"Service": "uwsgi"}]
    assert stack.parse_rows(json.dumps(rows)) == rows
    assert stack.parse_rows("\n".join(map(json.dumps, rows))) == rows
    assert stack.parse_rows("") == []


def test_the_test_stack_moves_all_its_ports_together(settings, monkeypatch):
    monkeypatch.setattr(testing.preflight, "in_use", lambda _address, port: port in (8013, 6672))
    assert testing.free_ports(settings) == {name: port + 2000 for name, port in config.DEFAULT_PORTS.items()}


def test_a_failed_suite_fails_the_run_and_the_others_still_run(capfd):
    chosen = [testing.Suite("bad", ("false",)), testing.Suite("good", ("echo", "ran"))]
    assert testing.run(chosen, {}) == 1
    out = capfd.readouterr().out
    assert "ran" in out
    assert "Failed: bad" in out
    assert testing.run(chosen[1:], {}) == 0


def test_help_documents_every_target_and_the_true_defaults():
    answer = subprocess.run(["make", "help"], cwd=config.ROOT, capture_output=True, text=True, check=True)
    makefile = (config.ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)
    for target in phony.split():
        assert re.search(rf"^  {target} +\S", answer.stdout, re.M), target
    for name, port in config.DEFAULT_PORTS.items():
        assert re.search(rf"{name} .*\({port}\)", answer.stdout), name
