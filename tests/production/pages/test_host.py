"""Every command that the pages of Operate print for one host, typed as it is printed, page by page.

The pages come in the order of a newcomer's life with it, and so do the commands of a page.
"""

from __future__ import annotations

import json
import re

import pytest

from tests.production.conftest import wait_for
from tests.production.how_to import commands
from tests.production.pages.conftest import CHECKOUT, DOMAIN, INVENTORY, Newcomer
from tests.production.pages.plans import HOST_PAGES, not_typed

SECRETS = f"{CHECKOUT}/ansible/inventories/{INVENTORY}/secrets"
POSTGRES = "runuser -u postgres --"


def newest_backup(newcomer: Newcomer) -> None:
    folder = f"{CHECKOUT}/ansible/inventories/{INVENTORY}/backups"
    newcomer.words["<time>"] = newcomer.control.run(f"ls -1 {folder} | tail -n 1").strip()


def database_of_before(newcomer: Newcomer) -> None:
    """What a restore that stopped in its check leaves: the restored database, and the one of before."""
    newcomer.words["<time>"] = "20261127030000"
    name = f"carillon_before_{newcomer.words['<time>']}"
    newcomer.host.run(
        f"{POSTGRES} createdb --owner carillon {name} && {POSTGRES} pg_dump --format custom carillon"
        f" | {POSTGRES} pg_restore --no-owner --role carillon --dbname {name}"
    )


def somebody(newcomer: Newcomer) -> None:
    newcomer.host.run(
        "runuser -u carillon -- carillon manage shell -c"
        " 'from django.contrib.auth.models import User; User.objects.get_or_create(username=\"ann\")'"
    )


def asks(newcomer: Newcomer, path: str, *options: str) -> str:
    """The answer of the API to the administrator, with its headers."""
    password = newcomer.control.run(f"cat {SECRETS}/admin-password").strip()
    return newcomer.control.run(
        f"curl --silent --show-error --fail --include --cacert {SECRETS}/tls/authority.crt"
        f" --user 'admin:{password}' {' '.join(options)} https://{DOMAIN}/api/v2/{path}"
    )


def position(newcomer: Newcomer) -> str:
    found = re.search(r"^x-carillon-position: (\S+)", asks(newcomer, "jobs/"), re.M | re.I)
    assert found
    return found[1]


def an_event(newcomer: Newcomer) -> None:
    """The page explains one by the position that its answer had; here it has another."""
    before = position(newcomer)
    asks(newcomer, "jobs/", "--json", '\'{"name": "Ring"}\'')
    after = wait_for(lambda: (now := position(newcomer)) != before and now, 30, "an event in the log")
    newcomer.words["19a8f3c2b1d4:1048701"] = after


def stopped(newcomer: Newcomer) -> None:
    newcomer.words["<program>"] = "runworker"
    newcomer.host.run("carillon-ctl stop runworker")


def authority(newcomer: Newcomer) -> None:
    """The copy that the page speaks of."""
    newcomer.words["<authority.crt>"] = "/root/authority.crt"
    text = newcomer.control.run(f"cat {SECRETS}/tls/authority.crt")
    newcomer.host.run(f"echo '{text}' > /root/authority.crt")


# What must be so before a command, by its beginning.
BEFORE = {
    "ansible-playbook -i inventories/chimes restore.yml": newest_backup,
    "carillon check --url": authority,
    "carillon-ctl stop all": database_of_before,
    "carillon manage link_identity": somebody,
    "carillon-ctl start <program>": stopped,
    "carillon explain": an_event,
}


@pytest.fixture(scope="module", autouse=True)
def words(newcomer) -> None:
    newcomer.words.update({"<release>": "next", "5f3a…": "5f3a"})


@pytest.mark.parametrize("page", HOST_PAGES)
def test_its_commands_do_what_the_page_says(newcomer, page):
    for command in commands(page):
        if not_typed(page, command):
            continue
        for start, prepare in BEFORE.items():
            if command.startswith(start):
                prepare(newcomer)
        newcomer.types(command)
    serves(newcomer)


def serves(newcomer: Newcomer) -> None:
    """As a user finds it after each page."""
    # The last command of a page may have restarted everything.
    answer = wait_for(lambda: asks(newcomer, "ping/"), 60, "an answer")
    assert json.loads(answer.splitlines()[-1])["status"] == "ok"
    authority(newcomer)
    newcomer.types(f"carillon check --url https://{DOMAIN} --ca <authority.crt>")
