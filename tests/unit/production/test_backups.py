"""Backups on the control node: encrypted, carried away, counted, missed; and the timers that make them."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.unit.production.test_control_node import ANSIBLE, TOOLS
from tests.unit.production.test_secrets import filters

NEW = "2026-11-25T03-00-00Z"
WHOLE = ("secrets.tar", "certificates.tar", "definitions.json", "database.dump")


def role(tasks: str) -> dict:
    return {"ansible.builtin.include_role": {"name": "backup", "tasks_from": tasks}}


@pytest.fixture
def backups(tmp_path) -> Path:
    """The folder beside the inventory, with three backups, and one that is being made."""
    folder = tmp_path / "backups"
    for name in ("2026-11-22T03-00-00Z", "2026-11-23T03-00-00Z", f".unfinished-{NEW}", "mine"):
        (folder / name).mkdir(parents=True)
    (folder / "2026-11-24T03-00-00Z.tar.gpg").write_text("")
    for name in WHOLE:
        (folder / f".unfinished-{NEW}" / name).write_text("rows\n")
    return folder


@pytest.fixture
def keep(play, backups):
    """A function that ends a run of backup.yml; its exit code and output."""

    def run(**variables) -> tuple[int, str]:
        folders = {
            "backup_folder": str(backups / f".unfinished-{NEW}"),
            "backup_final": str(backups / NEW),
        }
        return play(role("main"), topology_databases=["db"], topology_brokers=["mq"], **folders, **variables)

    return run


def test_a_backup_gets_its_name_when_it_is_whole_and_the_oldest_go(keep, backups):
    code, said = keep(backup_keep=2)
    assert code == 0, said
    assert {path.name for path in backups.iterdir()} == {NEW, "2026-11-24T03-00-00Z.tar.gpg", "mine"}
    assert (backups / NEW / "database.dump").read_text() == "rows\n"


@pytest.mark.parametrize("missing", WHOLE)
def test_a_backup_that_lacks_a_file_gets_no_name(keep, backups, missing):
    """Another run may have taken away what this one had written."""
    (backups / f".unfinished-{NEW}" / missing).unlink()
    code, said = keep(backup_keep=1)
    assert code == 2, said
    assert f"no {missing} there" in said
    assert len([path for path in backups.iterdir() if path.name.startswith("2026")]) == 3


def test_what_a_run_left_goes_before_the_next_begins_and_what_another_makes_stays(play, backups):
    long_ago = time.time() - 20 * 3600
    for name in (".unfinished-old", ".unfinished-2026-11-24T03-00-00Z.part"):
        (backups / name).touch()
        os.utime(backups / name, (long_ago, long_ago))
    os.utime(backups / "mine", (long_ago, long_ago))
    code, said = play(role("leftovers"))
    assert code == 0, said
    assert {path.name for path in backups.iterdir()} == {
        "2026-11-22T03-00-00Z",
        "2026-11-23T03-00-00Z",
        "2026-11-24T03-00-00Z.tar.gpg",
        f".unfinished-{NEW}",
        "mine",
    }


def test_none_goes_unless_one_says_how_many_stay(keep, backups):
    code, said = keep()
    assert code == 0, said
    assert len([path for path in backups.iterdir() if path.name.startswith("2026")]) == 4


def test_a_backup_is_carried_away_before_an_older_one_goes(keep, backups, tmp_path):
    code, said = keep(backup_keep=1, backup_carry=["cp", "--recursive", "{}", str(tmp_path / "elsewhere")])
    assert code == 0, said
    assert (tmp_path / "elsewhere/database.dump").read_text() == "rows\n"
    assert {path.name for path in backups.iterdir()} == {NEW, "mine"}


def test_where_it_cannot_be_carried_away_none_goes_and_the_run_fails(keep, backups):
    code, said = keep(backup_keep=1, backup_carry=["false", "{}"])
    assert code == 2, said
    assert len([path for path in backups.iterdir() if path.name.startswith("2026")]) == 4


@pytest.fixture(params=["gpg", "age"])
def key(request, tmp_path, monkeypatch):
    """(recipient, what a restore is told) of a new key."""
    if request.param == "age":
        if shutil.which("age") is None:
            pytest.skip("age is not installed")
        subprocess.run(["age-keygen", "-o", tmp_path / "key"], check=True, capture_output=True)
        yield (
            subprocess.check_output(["age-keygen", "-y", tmp_path / "key"], text=True).strip(),
            {"restore_identity": str(tmp_path / "key")},
        )
        return
    # GnuPG's agent has a socket there, whose path may not be long.
    with tempfile.TemporaryDirectory(prefix="gpg") as home:
        monkeypatch.setenv("GNUPGHOME", home)
        quiet = ["gpg", "--batch", "--quiet", "--passphrase", ""]
        subprocess.run(
            [*quiet, "--quick-generate-key", "backups@chimes.test", "future-default", "default", "never"],
            check=True,
            capture_output=True,
        )
        yield "backups@chimes.test", {}
        subprocess.run(["gpgconf", "--kill", "all"], check=False)


def test_an_encrypted_backup_is_a_file_that_only_its_recipient_opens(keep, play, backups, key):
    recipient, identity = key
    code, said = play(role("preflight"), backup_recipient=recipient)
    assert code == 0, said
    code, said = keep(backup_recipient=recipient)
    assert code == 0, said
    (made,) = backups.glob(f"{NEW}*")
    assert made.suffix in (".age", ".gpg")
    assert b"rows" not in made.read_bytes()
    assert made.stat().st_mode & 0o777 == 0o600
    code, said = play(role("open"), restore_from=str(made), backup_folder=str(backups / NEW), **identity)
    assert code == 0, said
    assert (backups / NEW / "database.dump").read_text() == "rows\n"


def test_where_it_cannot_be_encrypted_nothing_in_plain_looks_like_a_whole_backup(keep, backups):
    code, said = keep(backup_recipient="nobody@nowhere.test")
    assert code == 2, said
    assert not (backups / NEW).exists()
    assert (backups / f".unfinished-{NEW}/database.dump").exists()
    # A half of the encrypted file is removed with the rest, a day later.
    assert (backups / f".unfinished-{NEW}.part").exists()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"backup_recipient": "nobody@nowhere.test"}, "backup_recipient (nobody@nowhere.test):"),
        (
            {"backup_carry": ["no-such-rclone", "{}"]},
            "no-such-rclone is not installed on the control node, and backup_carry asks for it",
        ),
    ],
)
def test_what_would_fail_at_the_end_is_refused_before_the_beginning(play, variables, message):
    code, said = play(role("preflight"), **variables)
    assert code == 2
    assert message in said


def named(hours: float) -> str:
    when = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    return when.strftime("%Y-%m-%dT%H-%M-%SZ")


def test_a_last_backup_that_is_too_old_is_missed(play, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    (tmp_path / "backups").mkdir()
    code, said = play(role("age"), backup_max_age_hours=26)
    assert code == 2
    assert f"There is no backup in {tmp_path}/backups" in said
    (tmp_path / "backups" / f"{named(30.5)}.tar.age").write_text("")
    (tmp_path / "backups/.unfinished-x").mkdir()
    code, said = play(role("age"), backup_max_age_hours=26)
    assert code == 2
    assert "is 30 hours old, and backup_max_age_hours is 26" in said
    assert play(role("age"), backup_max_age_hours=0)[0] == 0
    assert play(role("age"), backup_max_age_hours=26, check_brief=True)[0] == 0
    (tmp_path / "backups" / named(25.5)).mkdir()
    code, said = play(role("age"), backup_max_age_hours=26)
    assert code == 0, said


def test_metrics_say_when_certificates_end_and_when_the_last_backup_was_made(play, tmp_path):
    (tmp_path / "backups" / NEW).mkdir(parents=True)
    end = "Nov 25 03:26:00 2027 GMT"
    code, said = play(
        {
            "ansible.builtin.set_fact": {
                "check_certificates": {"stdout_lines": [f"/etc/rabbitmq/server.crt notAfter={end}"]}
            }
        },
        {"ansible.builtin.group_by": {"key": "carillon"}},
        role("age"),
        backup_metrics_file=str(tmp_path / "carillon.prom"),
    )
    assert code == 0, said
    lines = [line for line in (tmp_path / "carillon.prom").read_text().splitlines() if line[:1] != "#"]
    assert lines == [
        f"carillon_backup_timestamp_seconds {filters.backup_made(NEW)}",
        'carillon_certificate_not_after_timestamp_seconds{host="web",file="/etc/rabbitmq/server.crt"} '
        f"{filters.ends_at(end)}",
    ]
    assert datetime.datetime.fromtimestamp(filters.ends_at(end), datetime.UTC).isoformat() == (
        "2027-11-25T03:26:00+00:00"
    )


@pytest.fixture
def timers(tmp_path):
    """A function that runs timers.yml for the example; what was told to systemd."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("systemctl", "loginctl"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/told\n')
        (programs / name).chmod(0o755)

    def run(*arguments: str, inventory: str = "inventories/example-single") -> list[str]:
        (tmp_path / "told").unlink(missing_ok=True)
        done = subprocess.run(
            [str(TOOLS / "ansible-playbook"), "-i", inventory, "timers.yml", *arguments],
            cwd=ANSIBLE,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
                "XDG_CONFIG_HOME": str(tmp_path),
                "PATH": f"{programs}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return (tmp_path / "told").read_text().splitlines()

    return run


def test_timers_that_would_end_with_the_login_are_refused(timers, tmp_path):
    (tmp_path / "bin/loginctl").write_text("#!/bin/sh\necho 'Access denied' >&2; exit 1\n")
    with pytest.raises(AssertionError, match="would end with the login"):
        timers()


def test_timers_of_two_repositories_are_two(timers, tmp_path):
    """`carillon new` calls the folder `inventory` in each."""
    for site in ("bells", "organ"):
        shutil.copytree(ANSIBLE / "inventories/example-single", tmp_path / site / "inventory")
        told = timers(inventory=str(tmp_path / site / "inventory"))
        assert f"systemctl --user enable --now carillon-{site}@backup.timer" in told
    units = {path.name for path in (tmp_path / "systemd/user").glob("*.service")}
    assert units == {"carillon-bells@.service", "carillon-organ@.service"}


def test_timers_run_the_playbooks_and_go_again(timers, tmp_path):
    name = "carillon-example-single"
    told = timers("-e", '{"timers_calendar": {"backup": "*-*-* 23:15"}}')
    assert f"systemctl --user enable --now {name}@backup.timer" in told
    user = subprocess.check_output(["id", "--user", "--name"], text=True).strip()
    assert f"loginctl enable-linger {user}" in told or Path("/var/lib/systemd/linger", user).exists()
    units = tmp_path / "systemd/user"
    assert {path.name for path in units.iterdir()} == {
        f"{name}@.service",
        *(f"{name}@{playbook}.timer" for playbook in ("backup", "certificates", "check", "prune")),
    }
    service = (units / f"{name}@.service").read_text()
    assert f'ansible-playbook" -i "{ANSIBLE}/inventories/example-single" %i.yml' in service
    assert "OnCalendar=*-*-* 23:15" in (units / f"{name}@backup.timer").read_text()
    for playbook in ("backup", "certificates", "check", "prune"):
        assert (ANSIBLE / f"{playbook}.yml").is_file()
    # systemd itself reads them.
    done = subprocess.run(
        [
            *("systemd-analyze", "verify", "--man=no", "--user"),
            *(str(path) for path in sorted(units.glob("*.timer"))),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    told = timers("-e", "timers_state=absent")
    assert f"systemctl --user disable --now {name}@check.timer" in told
    assert list(units.iterdir()) == []
