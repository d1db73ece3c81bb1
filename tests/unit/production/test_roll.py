"""carillon-roll --update: each group in turn, one with a socket by its last process."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.unit.production.test_control_node import ANSIBLE

STATUS = """\
daphne:daphne_0    RUNNING   pid 1, uptime 0:10:00
daphne:daphne_1    RUNNING   pid 2, uptime 0:10:00
runworker          RUNNING   pid 3, uptime 0:10:00
"""


@pytest.fixture
def roll(tmp_path):
    """A function that runs it on a host of stubs; what they were told, in order."""
    conf = tmp_path / "conf.d"
    conf.mkdir()
    (conf / "daphne.conf").write_text("[fcgi-program:daphne]\nsocket = tcp://%(ENV_CARILLON_BIND)s:8051\n")
    (conf / "runworker.conf").write_text("[program:runworker]\n")
    (tmp_path / "status").write_text(STATUS)
    stubs = {
        "ctl": 'case "$1" in status) cat {0}/status;; reread) cat {0}/reread;;'
        ' pid) echo 1;; *) echo "ctl $*" >> {0}/told;; esac',
        "nft": 'case "$1" in -f) echo "hold $(grep -o "[0-9]\\+ timeout")" >> {0}/told;;'
        ' *) echo "nft $*" >> {0}/told;; esac',
        "ss": "echo LISTEN 0 512 127.0.0.1:8051",
        "runuser": "exit 0",
    }
    for name, script in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script.format(tmp_path)}\n")
        (tmp_path / name).chmod(0o755)
    text = (ANSIBLE / "roles/supervisord/files/carillon-roll").read_text()
    text = text.replace("/usr/local/sbin/carillon-ctl", str(tmp_path / "ctl"))
    text = text.replace("/run/carillon/fatal", str(tmp_path / "fatal"))
    (tmp_path / "roll").write_text(text.replace("/etc/carillon/supervisord/conf.d", str(conf)))

    def run(*reread: str) -> list[str]:
        (tmp_path / "reread").write_text("".join(f"{line}\n" for line in reread))
        done = subprocess.run(
            ["sh", str(tmp_path / "roll"), "--update"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
        assert done.returncode == 0, done.stderr
        return (tmp_path / "told").read_text().splitlines()

    return run


def test_a_group_with_a_socket_goes_by_its_last_process_while_new_connections_wait(roll):
    assert roll("daphne: changed") == [
        "ctl stop daphne:daphne_0",
        "hold 8051 timeout",
        "ctl update daphne",
        "nft destroy table inet carillon_hold",
        # Once more at the end: whatever happens in between, nothing is held back any longer.
        "nft destroy table inet carillon_hold",
    ]


def test_a_group_without_a_socket_holds_nobody_back(roll):
    assert roll("runworker: changed") == ["ctl update runworker"]


def test_a_group_that_is_gone_has_no_file(roll):
    assert roll("_release_marker: disappeared") == ["ctl update _release_marker"]


def test_the_mark_of_a_program_that_is_gone_goes_and_of_one_that_is_there_stays(roll, tmp_path):
    """Else check.yml would refuse for ever, after the rollback too."""
    (tmp_path / "fatal").mkdir()
    for name in ("daphne:daphne_1", "runworker", "worker:worker_0", "run"):
        (tmp_path / "fatal" / name).touch()
    roll("worker: disappeared")
    assert {mark.name for mark in (tmp_path / "fatal").iterdir()} == {"daphne:daphne_1", "runworker"}


def test_all_that_differ_are_done(roll):
    told = roll("old: disappeared", "daphne: changed", "runworker: changed", "new: available")
    assert [line for line in told if line.startswith("ctl update")] == [
        f"ctl update {group}" for group in ("old", "daphne", "runworker", "new")
    ]


@pytest.mark.parametrize(
    ("code", "asked"),
    [(1, 2), (2, 1)],
    ids=["one that is declared must have lived for a while", "of another nothing more is known"],
)
def test_a_process_of_the_project_s(roll, tmp_path, code, asked):
    """`RUNNING` says no more than that it lived for five seconds, in which the launcher may have waited."""
    (tmp_path / "status").write_text(STATUS + "worker:worker_0    RUNNING   pid 4, uptime 0:00:05\n")
    (tmp_path / "runuser").write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\n[ $(wc -l < {tmp_path}/asked) -gt 1 ] || exit {code}\n'
    )
    roll("worker: available")
    assert len((tmp_path / "asked").read_text().splitlines()) == asked
